// Package picture draws what a store holds, as SVG and for the terminal: Tree its
// volumes, snapshots and clones, Map what lies where in one of them.
//
// It is given plain structs and knows nothing of stores. The same struct gives the
// same bytes. What cannot be printed in a name is drawn as U+FFFD, so that no name
// can break a document or command a terminal.
package picture
