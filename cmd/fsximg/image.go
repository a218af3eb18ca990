package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/convert"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/urfave/cli/v2"
)

// image is a volume or a snapshot that is read: in this process, or behind the
// server that has its store.
type image struct {
	convert.Source
	ref   cliutil.Ref
	store *volume.Store // open until close; nil if it is served
}

// name is what the image is called in its store, VOLUME or VOLUME@SNAPSHOT.
func (i *image) name() string {
	if i.ref.Snapshot == "" {
		return i.ref.VolumeOrDefault()
	}
	return i.ref.VolumeOrDefault() + "@" + i.ref.Snapshot
}

// describe describes it for people.
func (i *image) describe() string {
	if i.ref.Snapshot != "" {
		return "snapshot " + i.name()
	}
	return "volume " + i.name()
}

// close ends the connection, or closes the store; its error counts if there is no
// other.
func (i *image) close(err *error) {
	i.Source.Close()
	if i.store != nil {
		closeStore(i.store, err)
	}
}

// openImage opens what ref names, and its store with the keys that are named or
// asked for. Of a served store the server reads, with the keys that it has.
func openImage(ctx context.Context, env *cliutil.Env, c *cli.Context, ref cliutil.Ref) (*image, error) {
	st, err := openUnlocked(ctx, env, c, ref.Store, forReading)
	if err != nil {
		src, err := dialImage(ctx, env, c, ref, err)
		if err != nil {
			return nil, err
		}
		return &image{src, ref, nil}, nil
	}
	src, err := sourceIn(st, ref)
	if err != nil {
		closeStore(st, &err)
		return nil, err
	}
	return &image{src, ref, st}, nil
}

// sourceIn reads a volume or a snapshot of an open store. Closing the source does
// not close it.
func sourceIn(st *volume.Store, ref cliutil.Ref) (convert.Source, error) {
	v, err := openVolume(st, ref)
	if err != nil {
		return nil, err
	}
	if ref.Snapshot == "" {
		return convert.FromDevice(v), nil
	}
	s, err := v.Snapshot(ref.Snapshot)
	if err != nil {
		return nil, err
	}
	return convert.FromDevice(s), nil
}

// dialImage reads a volume or a snapshot of a store that could not be opened, for
// the reason given, through its server; without one that is the error.
func dialImage(ctx context.Context, env *cliutil.Env, c *cli.Context, ref cliutil.Ref, reason error) (convert.Source, error) {
	server, err := dialServer(ctx, env, c, ref.Store, reason)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	uri, err := server.URI(ctx, ref.VolumeOrDefault(), ref.Snapshot)
	if err != nil {
		return nil, err
	}
	env.Log.Info("reading through the server", "uri", uri)
	client, err := convert.DialNBD(ctx, uri)
	if err != nil {
		return nil, cliutil.WithHint(err, "the store is served, and this is its server's NBD socket: %s", uri)
	}
	return servedSource{convert.FromRandom(client), ref.Store}, nil
}

// servedSource is an image behind the server of a store.
type servedSource struct {
	convert.Source
	store string
}

// Stream implements convert.Source. NBD tells that a block cannot be read, and not
// that it is damaged or that its key is missing.
func (s servedSource) Stream(ctx context.Context, fn func(convert.Piece) error) error {
	err := s.Source.Stream(ctx, fn)
	if errors.Is(err, syscall.EIO) {
		return cliutil.WithHint(err, "fsximg check %s lists what is damaged", s.store)
	}
	return err
}
