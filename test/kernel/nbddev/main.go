// Command nbddev drives internal/attach/nbddev inside the virtual machine, where
// what it does can be seen: it makes, mends and ends network block devices.
//
//	nbddev connect [-path /dev/nbdN] [-n SOCKETS] [-backend ID] [-dead 60s] [-timeout 0] [-read-only] URI
//	nbddev keep [-ioctl] …       as connect, with a relay in between, and stays while the device lives
//	nbddev keep -adopt /dev/nbdN …  gives a device, whose keeper is gone, another one
//	nbddev reconnect -backend ID DEVICE URI
//	nbddev fail -backend ID DEVICE
//	nbddev disconnect DEVICE
//	nbddev abandon DEVICE
//	nbddev list
//	nbddev watch [N]             prints the device of each link that died; ends after N
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/fsximg/fsx/internal/attach/nbddev"
	"github.com/fsximg/fsx/internal/attach/relay"
	"github.com/fsximg/fsx/internal/nbdclient"
)

type arguments struct {
	*flag.FlagSet
	opt     nbddev.Options
	sockets int
	ioctl   bool
	adopt   string
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("which action?"))
	}
	a := arguments{FlagSet: flag.NewFlagSet(os.Args[1], flag.ExitOnError)}
	a.StringVar(&a.opt.Path, "path", "", "device")
	a.IntVar(&a.sockets, "n", 1, "sockets")
	a.StringVar(&a.opt.Backend, "backend", "", "identifier")
	a.DurationVar(&a.opt.DeadTimeout, "dead", time.Minute, "dead-connection time-out")
	a.DurationVar(&a.opt.RequestTimeout, "timeout", 0, "request time-out")
	a.BoolVar(&a.opt.ReadOnly, "read-only", false, "no writes")
	a.BoolVar(&a.ioctl, "ioctl", false, "not by netlink")
	a.StringVar(&a.adopt, "adopt", "", "device whose keeper is gone")
	if err := a.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	if a.ioctl {
		a.opt.Way = nbddev.Ioctl
	}
	if err := run(os.Args[1], a); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "nbddev:", err)
	os.Exit(1)
}

func run(action string, a arguments) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	k := nbddev.This()
	switch action {
	case "connect":
		return connect(ctx, k, a)
	case "keep":
		return keep(ctx, k, a)
	case "list":
		return list(k)
	case "watch":
		return watch(k, a.Arg(0))
	}
	index, ok := nbddev.IndexOf(a.Arg(0))
	if !ok {
		return fmt.Errorf("%q is no device", a.Arg(0))
	}
	switch action {
	case "reconnect":
		s, err := nbdclient.Negotiate(ctx, a.Arg(1))
		if err != nil {
			return err
		}
		return errors.Join(k.Reconnect(index, s.File, a.opt.Backend), s.File.Close())
	case "fail":
		return k.Fail(index, a.opt.Backend)
	case "disconnect":
		return k.Disconnect(ctx, index)
	case "abandon":
		return k.Abandon(ctx, index)
	}
	return fmt.Errorf("no action %q", action)
}

func connect(ctx context.Context, k *nbddev.Kernel, a arguments) error {
	var files []*os.File
	for range a.sockets {
		s, err := nbdclient.Negotiate(ctx, a.Arg(0))
		if err != nil {
			return err
		}
		defer s.File.Close()
		files = append(files, s.File)
		a.opt.Size, a.opt.Flags = uint64(s.Size), uint16(s.Flags)
	}
	c, err := k.Connect(ctx, files, a.opt)
	if err != nil {
		return err
	}
	fmt.Println(c.Path)
	return nil
}

func keep(ctx context.Context, k *nbddev.Kernel, a arguments) error {
	dial := func(ctx context.Context) (*nbdclient.Socket, error) { return nbdclient.Negotiate(ctx, a.Arg(0)) }
	first, err := dial(ctx)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	r, sockets, err := relay.New(first, a.sockets, relay.Config{Dial: dial, Timeout: a.opt.DeadTimeout, Log: log})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	if index, ok := nbddev.IndexOf(a.adopt); ok {
		for _, s := range sockets {
			err = errors.Join(err, k.Reconnect(index, s, a.opt.Backend))
		}
	} else {
		a.opt.Size, a.opt.Flags = uint64(first.Size), uint16(first.Flags)
		var c *nbddev.Connection
		if c, err = k.Connect(ctx, sockets, a.opt); err == nil {
			fmt.Println(c.Path)
		}
	}
	for _, s := range sockets {
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		return err
	}
	return <-ended
}

func list(k *nbddev.Kernel) error {
	l, err := k.List()
	for _, d := range l {
		if d.Connected || d.Open {
			fmt.Printf("%s connected=%t open=%t backend=%s size=%d ro=%t\n", d.Path, d.Connected, d.Open, d.Backend, d.Size, d.ReadOnly)
		}
	}
	return err
}

func watch(k *nbddev.Kernel, count string) error {
	n := -1
	if count != "" {
		var err error
		if n, err = strconv.Atoi(count); err != nil {
			return err
		}
	}
	w, err := k.Watch()
	if err != nil {
		return err
	}
	defer w.Close()
	fmt.Println("watching")
	for ; n != 0; n-- {
		index, err := w.Next(context.Background())
		if err != nil {
			return err
		}
		fmt.Printf("dead /dev/nbd%d\n", index)
	}
	return nil
}
