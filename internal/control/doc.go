// Package control lets commands work on a store that a server has open: the
// server carries them out, with its keys, and they see no difference. Operations
// is what a command uses; Open finds out who has the store.
//
// The control socket is STORE/control.sock, mode 0600, made by whoever serves the
// store and removed at its end. It speaks HTTP/1.1 to its own user and to root,
// whom it knows by their peer credentials. An operation is a POST:
//
//	curl --unix-socket base.fsx/control.sock -d '{}' http://fsx/v1/info
//
// The body is one JSON object, the operation's parameters (requests.go). The
// answer is JSON lines, each with one of
//
//	{"progress":{"done":4096,"total":8192}}
//	{"item":{…}}                                      a run, of map and diff
//	{"result":{…}}                                    the last line of a success
//	{"error":{"kind":…,"message":…,"hint":…}}         the last line of a failure
//
// An answer without a last line is one that the server did not live to finish. A
// client that closes its connection cancels the operation. The v1 in the path is
// the protocol's version; hello tells it, and the server's own. The operation uri
// tells where a volume or a snapshot can be read by NBD, server/status what the
// server does, of all stores that it serves.
package control
