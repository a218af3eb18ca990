package control

import (
	"slices"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/crypt"
	"github.com/fsximg/fsx/pkg/layout"
)

// DescribeSlots describes the slots of a keyring.
func DescribeSlots(slots []crypt.SlotInfo) []Slot {
	out := []Slot{}
	for _, s := range slots {
		r := Slot{Slot: s.Number, Type: s.Type.String(), VolumeKey: s.VolumeKey.String()}
		if s.KDF != (crypt.KDF{}) {
			r.KDF = &KDF{"argon2id", int64(s.KDF.MemoryKiB) << 10, s.KDF.Passes, s.KDF.Lanes}
		}
		out = append(out, r)
	}
	return out
}

func describeVolumes(volumes []volume.VolumeInfo) []Volume {
	names := map[layout.VolumeID]string{}
	for _, v := range volumes {
		names[v.ID] = v.Name
	}
	out := []Volume{}
	for _, v := range volumes {
		d := Volume{
			Name: v.Name, ID: v.ID.String(), UUID: v.UUID.String(), Size: v.Size, Used: v.Live, Allocated: v.Allocated,
			Cipher: v.Mode.String(), VolumeKey: v.VolumeKey.String(), Parent: names[v.Parent], Created: v.Created.UTC(),
			Snapshots: []Snapshot{},
		}
		for _, s := range v.Snapshots {
			d.Snapshots = append(d.Snapshots, describeSnapshot(s))
		}
		out = append(out, d)
	}
	return out
}

func describeSnapshot(s volume.SnapshotInfo) Snapshot {
	return Snapshot{s.Name, uint64(s.Number), s.Size, s.Created.UTC()}
}

func needsReplay(volumes []volume.VolumeInfo) bool {
	return slices.ContainsFunc(volumes, func(v volume.VolumeInfo) bool { return v.NeedsReplay })
}

func describeRun(r volume.Run) Run {
	run := Run{Start: r.Start, Length: r.Length}
	switch r.Kind {
	case layout.Hole:
		run.Kind = "hole"
	case layout.Zero:
		run.Kind = "zero"
	case layout.Data:
		run.Kind, run.Owner, run.Key = "data", r.Owner.String(), r.KID.String()
	}
	return run
}

func describeDiffRun(r volume.DiffRun) DiffRun {
	kind := "data"
	if r.Zero {
		kind = "zero"
	}
	return DiffRun{r.Start, r.Length, kind}
}

func (r *Report) add(rep *volume.Report) {
	for _, v := range rep.Volumes {
		r.Volumes = append(r.Volumes, CheckedVolume{v.Name, v.Blocks, v.Verified, v.Leaked, v.Authentic})
	}
	for _, p := range rep.Problems {
		out := Problem{Volume: p.Volume, Length: p.Length, Text: p.Text}
		if p.Offset >= 0 {
			out.Offset = &p.Offset
		}
		r.Problems = append(r.Problems, out)
	}
	r.NotListed = rep.More
	r.Clean = len(r.Problems) == 0
}
