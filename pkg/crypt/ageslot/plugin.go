package ageslot

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
)

func encodePEM(b *pem.Block) []byte { return pem.EncodeToMemory(b) }

// errTimeout is an ErrPlugin that took too long.
var errTimeout = fmt.Errorf("%w: no answer in time", ErrPlugin)

// runPlugin does work that starts the named plugins, on a copy of secret
// that it clears. After the time-out they are killed; if a pipe stays
// open all the same, because children of its own hold it, the work is left
// behind, and ends with them.
func runPlugin(names []string, timeout time.Duration, secret []byte, work func([]byte) ([]byte, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	own := bytes.Clone(secret)
	go func() {
		defer clear(own)
		b, err := work(own)
		done <- result{b, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-time.After(timeout):
		for _, name := range names {
			killPlugin(name)
		}
		return nil, fmt.Errorf("age-plugin-%s: %w (%v)", strings.Join(names, ", age-plugin-"), errTimeout, timeout)
	}
	var none *age.NoIdentityMatchError
	if r.err != nil && !errors.As(r.err, &none) {
		return nil, fmt.Errorf("%w: %v", ErrPlugin, r.err)
	}
	return r.b, r.err
}

// killPlugin kills the plugins of that name that this process has started. The
// age library keeps its process to itself, so they are found among the
// children: they are not waited for before they end, so no other process can
// have their number.
func killPlugin(name string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		dir := filepath.Dir(stat)
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || parentOf(stat) != os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && strings.Contains(string(line), "age-plugin-"+name+"\x00--age-plugin=") {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// parentOf reads the parent from a /proc/PID/stat: the second field behind the
// name, which ends with the last parenthesis.
func parentOf(stat string) int {
	b, err := os.ReadFile(stat)
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(string(fields[1]))
	return n
}
