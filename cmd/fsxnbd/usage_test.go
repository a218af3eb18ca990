package main

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
)

func TestUsage(t *testing.T) {
	all := []control.Device{{Volume: "v"}, {Volume: "v", Snapshot: control.AllSnapshots}}
	for _, tt := range []struct {
		client string
		claim  []control.Device
		fits   bool
	}{
		{"v", []control.Device{{Volume: "v"}}, false},
		{"v", []control.Device{{Volume: "w"}}, true},
		{"v", []control.Device{{Volume: "v", Snapshot: "s"}}, true},
		{"v", []control.Device{{Volume: "v", Snapshot: control.AllSnapshots}}, true},
		{"v@s", []control.Device{{Volume: "v"}}, true},
		{"v@s", []control.Device{{Volume: "v", Snapshot: "s"}}, false},
		{"v@s", []control.Device{{Volume: "v", Snapshot: "r"}}, true},
		{"v@s", all, false},
		{"v", all, false},
		{"w@s", all, true},
	} {
		var u usage
		leave, err := u.enter(tt.client)
		if err != nil {
			t.Fatal(err)
		}
		release, err := u.claim(tt.claim...)
		if (err == nil) != tt.fits {
			t.Errorf("client of %s, then claim of %v: %v", tt.client, tt.claim, err)
		}
		if err != nil && (!errors.Is(err, cliutil.ErrInUse) || !strings.Contains(err.Error(), "1 client")) {
			t.Errorf("claim: %v", err)
		}
		if err == nil {
			release()
		}
		leave()
		if release, err = u.claim(tt.claim...); err != nil {
			t.Fatalf("claim of what has no client: %v", err)
		}
		if _, err := u.claim(tt.claim...); !errors.Is(err, cliutil.ErrInUse) {
			t.Errorf("claimed twice: %v", err)
		}
		leave, err = u.enter(tt.client)
		if (err == nil) != tt.fits {
			t.Errorf("claim of %v, then client of %s: %v", tt.claim, tt.client, err)
		}
		release()
		if err == nil {
			leave()
		}
		if leave, err = u.enter(tt.client); err != nil {
			t.Errorf("client after the claim: %v", err)
		}
		leave()
	}
}

// TestUsageRace has clients and claims come and go: never are both there.
func TestUsageRace(t *testing.T) {
	var u usage
	var mu sync.Mutex
	clients, claims := 0, 0
	count := func(what *int, by int) {
		mu.Lock()
		defer mu.Unlock()
		if *what += by; clients > 0 && claims > 0 || claims > 1 {
			t.Errorf("%d clients, %d claims", clients, claims)
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 2000 {
				if i%2 == 0 {
					if leave, err := u.enter("v@s"); err == nil {
						count(&clients, 1)
						count(&clients, -1)
						leave()
					}
				} else if release, err := u.claim(control.Device{Volume: "v", Snapshot: control.AllSnapshots}); err == nil {
					count(&claims, 1)
					count(&claims, -1)
					release()
				}
			}
		})
	}
	wg.Wait()
}
