package convert

import (
	"context"
	"fmt"

	"github.com/fsximg/fsx/internal/nbdclient"
)

// NBD is the export of an NBD server, with its holes as far as the server tells of
// them.
type NBD struct {
	*nbdclient.Client
	runs []Run // what Next knows, in order
}

// DialNBD connects to the export that an NBD URI names. ctx bounds the negotiation.
func DialNBD(ctx context.Context, uri string) (*NBD, error) {
	c, err := nbdclient.Dial(ctx, uri)
	if err != nil {
		return nil, err
	}
	return &NBD{Client: c}, nil
}

// Next implements Random. Only what surely reads as zeros is not data.
func (n *NBD) Next(_ context.Context, off int64) (Run, error) {
	for len(n.runs) > 0 && n.runs[0].Off+n.runs[0].Len <= off {
		n.runs = n.runs[1:]
	}
	if len(n.runs) == 0 {
		if err := n.ask(off); err != nil {
			return Run{}, err
		}
	}
	r := n.runs[0]
	n.runs = n.runs[1:]
	if r.Off != off {
		return Run{}, fmt.Errorf("%w: status at %d instead of %d", nbdclient.ErrProtocol, r.Off, off)
	}
	return r, nil
}

// ask fills runs from off on.
func (n *NBD) ask(off int64) error {
	extents, err := n.Extents(off)
	for _, e := range extents {
		kind := Data
		switch {
		case e.Zero && e.Hole:
			kind = Hole
		case e.Zero:
			kind = Zero
		}
		if last := len(n.runs) - 1; last >= 0 && n.runs[last].Kind == kind {
			n.runs[last].Len += e.Len
		} else {
			n.runs = append(n.runs, Run{e.Off, e.Len, kind})
		}
	}
	return err
}
