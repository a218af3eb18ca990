package picture

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Text draws the tree for a terminal, like tree(1): a volume's snapshots below it,
// oldest first, and clones below the snapshot they start from.
func (t *Tree) Text(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "%s  %s, %s used\n", printable(t.Store), sizeText(t.Size), sizeText(t.Used))
	volumesText(out, "", t.forest(), true)
	return out.Flush()
}

// volumesText draws volumes at one level; last says that nothing follows them there.
func volumesText(out *bufio.Writer, indent string, volumes []*node, last bool) {
	for i, n := range volumes {
		below := twig(out, indent, last && i == len(volumes)-1)
		fmt.Fprintf(out, "%s  %s\n", printable(n.Name), strings.Join(n.facts(), ", "))
		volumesText(out, below, n.clones, len(n.snapshots) == 0)
		for j, s := range n.snapshots {
			under := twig(out, below, j == len(n.snapshots)-1)
			fmt.Fprintf(out, "@%s  %s\n", printable(s.Name), strings.Join(s.facts(n.Size), ", "))
			volumesText(out, under, s.clones, true)
		}
	}
}

// twig draws what is left of a name and returns what is left of those below it.
func twig(out *bufio.Writer, indent string, last bool) (below string) {
	branch, below := "├── ", "│   "
	if last {
		branch, below = "└── ", "    "
	}
	out.WriteString(indent + branch)
	return indent + below
}

func (n *node) facts() []string {
	f := []string{sizeText(n.Size), sizeText(n.Own) + " own"}
	if n.Key != "" {
		f = append(f, "key "+printable(n.Key))
	}
	if from := n.origin(); from != "" {
		f = append(f, printable(from))
	}
	if n.Hidden {
		f = append(f, "hidden")
	}
	return f
}

// facts of a snapshot tell its size only where it is not its volume's.
func (s *TreeSnapshot) facts(volumeSize int64) (f []string) {
	if at := s.created(); at != "" {
		f = append(f, at)
	}
	if s.Size != volumeSize {
		f = append(f, sizeText(s.Size))
	}
	f = append(f, "frees "+sizeText(s.Freed))
	if s.Hidden {
		f = append(f, "hidden")
	}
	return f
}
