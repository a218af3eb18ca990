package cliutil_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsximg/fsx/internal/cliutil"
	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
)

func TestParseSize(t *testing.T) {
	for _, row := range []struct {
		in   string
		want int64
	}{
		{"512", 512}, {"1K", 1024}, {"1k", 1024}, {"1.5G", 3 << 29}, {"0.5K", 512}, {"10M", 10 << 20},
		{"3T", 3 << 40}, {"2P", 2 << 50}, {"7E", 7 << 60}, {"2GiB", 2 << 30}, {"1.5 GiB", 3 << 29},
		{"9223372036854771712", math.MaxInt64 - 4095},
	} {
		got, err := cliutil.ParseSize(row.in)
		if err != nil || got != row.want {
			t.Errorf("%q: got %d, %v, want %d", row.in, got, err, row.want)
		}
	}
	for in, part := range map[string]string{
		"": "not a number", "G": "not a number", "0": "more than zero", "0K": "more than zero",
		"-1G": "not a number", "+1G": "not a number", "1..5G": "not a number", ".5G": "not a number", "5.": "not a number",
		"511": "multiple of 512", "0.3K": "whole number", "1X": "powers of 1024", "1GB": "powers of 1024",
		"1Gi": "powers of 1024", "8E": "largest", "9223372036854771713": "largest", "99999999999999999999": "largest",
		"1e3": "not a number", "0x10": "not a number", "1 000": "not a number", strings.Repeat("9", 1000): "not a number",
	} {
		_, err := cliutil.ParseSize(in)
		if !errors.Is(err, cliutil.ErrUsage) || !strings.Contains(err.Error(), part) {
			t.Errorf("%.40q: got %v, want %q", in, err, part)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 512: "512 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 20: "1 MiB",
		1<<20 - 1: "1 MiB", 3 << 29: "1.5 GiB", 10<<30 + 1: "10 GiB", math.MaxInt64: "8 EiB", -2048: "-2 KiB",
	} {
		if got := cliutil.FormatSize(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestParseRef(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd:name@x.fsx")
	if err := os.Mkdir(odd, 0o700); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]cliutil.Ref{
		"base.fsx":                     {Store: "base.fsx"},
		"base.fsx:root":                {Store: "base.fsx", Volume: "root"},
		"base.fsx@s1":                  {Store: "base.fsx", Snapshot: "s1"},
		"base.fsx:root@s1":             {Store: "base.fsx", Volume: "root", Snapshot: "s1"},
		"/a:b/c@d/base.fsx":            {Store: "/a:b/c@d/base.fsx"},
		"/a:b/base.fsx:v-1_":           {Store: "/a:b/base.fsx", Volume: "v-1_"},
		odd:                            {Store: odd},
		odd + ":v":                     {Store: filepath.Join(dir, "odd"), Volume: "bad"},
		"./x:9.Z":                      {Store: "./x", Volume: "9.Z"},
		"x:" + strings.Repeat("a", 63): {Store: "x", Volume: strings.Repeat("a", 63)},
	} {
		got, err := cliutil.ParseRef(in)
		if want.Volume == "bad" {
			if err == nil {
				t.Errorf("%s: accepted as %v", in, got)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", in, got, err, want)
		}
		if in != odd && got.String() != in {
			t.Errorf("%s: prints as %s", in, got)
		}
	}
	for _, in := range []string{"", ":v", "@s", "dir/:v", "x:", "x@", "x:@s", "x:v@", "x:-v", "x@a:b", "x:v@a@b",
		"x:v w", "x:" + strings.Repeat("a", 64), "x:ü"} {
		if got, err := cliutil.ParseRef(in); !errors.Is(err, cliutil.ErrUsage) {
			t.Errorf("%q: got %+v, %v", in, got, err)
		}
	}
}

func TestStoreBase(t *testing.T) {
	for in, want := range map[string]string{"base.fsx": "base", "/a/b.fsx/": "b", "x": "x", "a/b.fsx.fsx": "b.fsx"} {
		if got := cliutil.StoreBase(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, row := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{os.ErrNotExist, 1},
		{context.Canceled, 1},
		{cliutil.ErrRefused, 1},
		{cliutil.UsageErrorf("x"), 2},
		{crypt.ErrKDF, 2},
		{crypt.ErrPrintableKeyFile, 2},
		{cliutil.ErrNotFound, 3},
		{volume.ErrNotStore, 3},
		{volume.ErrNotFound, 3},
		{volume.ErrNoSnapshot, 3},
		{volume.ErrVersion, 1},
		{volume.ErrKeyMissing, 4},
		{&volume.BusyError{}, 5},
		{volume.ErrDamaged, 6},
		{cliutil.ErrNoSecret, 4},
		{crypt.ErrWrongKey, 4},
		{crypt.ErrRecoveryKey, 4},
		{cliutil.ErrInUse, 5},
		{cliutil.ErrDamaged, 6},
		{cliutil.ErrRepaired, 7},
		{cliutil.ErrDifferent, 1},
		{cliutil.NotCompared(cliutil.ErrNoSecret), 8},
		{cliutil.ErrInterrupted, 130},
		{cliutil.ExitStatus(42), 42},
		{cliutil.Silent(cliutil.ErrDamaged), 6},
		{cliutil.WithHint(cliutil.ErrInUse, "wait"), 5},
	} {
		for _, err := range []error{row.err, fmt.Errorf("import base.fsx: %w", row.err)} {
			if row.err == nil {
				err = nil
			}
			if got := cliutil.ExitCode(err); got != row.want {
				t.Errorf("%v: got %d, want %d", err, got, row.want)
			}
		}
	}
}
