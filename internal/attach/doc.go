// Package attach makes block devices of volumes and mounts them: what is between the
// commands attach, detach, attached, mount and unmount, the server and the kernel.
//
// # Who does what
//
// Each device has a keeper, a process of its own: the hidden command keep of
// fsximg. It connects to the store's server, makes the device, connects again
// when the server was killed and another has come, and ends when the device has
// gone, whoever detached it. The command attach finds the store's server or starts
// one, starts the keeper, and waits until it has the device. The command detach
// ends the device itself; then the keeper ends, and then the server, if it was
// started for devices only and this was its last client.
//
// # What is known, and from where
//
// The truth about what is attached is the kernel's: the backend identifier of a
// network block device, the backing file of a loop device. Both contain the store's
// UUID and the volume's name (Identity). The keeper's record in the run directory
// adds what is of use to people; nobody needs it. After kill -9 of anything, or of
// the machine, nothing has to be put right by hand.
//
// # Order
//
// Commands that attach or detach volumes of one store exclude each other (lockStore);
// of each identity there is one keeper (lockKeeper). A keeper does not need the first
// lock for anything.
package attach
