package main

import (
	"strconv"
	"strings"
	"sync"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/control"
)

// usage is who uses a store's devices: the clients of each volume and snapshot,
// and the commands that must have one for themselves. Its zero value is ready.
//
// A device never has clients and a claim at once.
type usage struct {
	mu      sync.Mutex
	clients map[control.Device]int // more than 0
	claimed map[control.Device]bool
}

// deviceOf is the device that an export of one store, VOLUME or VOLUME@SNAPSHOT,
// shows.
func deviceOf(export string) control.Device {
	vol, snap, _ := strings.Cut(export, "@")
	return control.Device{Volume: vol, Snapshot: snap}
}

// enter counts a client in. leave must be called once.
func (u *usage) enter(export string) (leave func(), err error) {
	d := deviceOf(export)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.claimed[d] || d.Snapshot != "" && u.claimed[control.Device{Volume: d.Volume, Snapshot: control.AllSnapshots}] {
		return nil, claimedError(d)
	}
	if u.clients == nil {
		u.clients = map[control.Device]int{}
	}
	u.clients[d]++
	return func() { u.leave(d) }, nil
}

func (u *usage) leave(d control.Device) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.clients[d]--; u.clients[d] == 0 {
		delete(u.clients, d)
	}
}

// claim implements control.Claim: until release is called no client comes to
// the devices, which have none now.
func (u *usage) claim(devices ...control.Device) (release func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, d := range devices {
		if err := u.freeLocked(d); err != nil {
			return nil, err
		}
	}
	if u.claimed == nil {
		u.claimed = map[control.Device]bool{}
	}
	for _, d := range devices {
		u.claimed[d] = true
	}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, d := range devices {
			delete(u.claimed, d)
		}
	}, nil
}

// freeLocked says who has a device, if somebody has.
func (u *usage) freeLocked(want control.Device) error {
	for d, n := range u.clients {
		if want.Covers(d) {
			return cliutil.WithHint(cliutil.Errorf(cliutil.ErrInUse, "%s is in use by %s", d, clientsText(n)), "disconnect them first")
		}
	}
	for d := range u.claimed {
		if want.Covers(d) || d.Covers(want) {
			return claimedError(want)
		}
	}
	return nil
}

func claimedError(d control.Device) error {
	return cliutil.Errorf(cliutil.ErrInUse, "%s is being changed by another command", d)
}

func clientsText(n int) string {
	if n == 1 {
		return "1 client"
	}
	return strconv.Itoa(n) + " clients"
}
