// Package nbddev makes and ends network block devices of Linux: /dev/nbdN, whose
// requests the kernel sends over a socket that a program negotiated. It knows
// nothing of stores. The way is generic netlink (family "nbd", since Linux 4.11);
// where that family is missing it is ioctl on the device.
//
// Numbers and behaviour are those of Linux's include/uapi/linux/nbd-netlink.h,
// include/uapi/linux/nbd.h and drivers/block/nbd.c, read in versions 5.7, 6.1, 6.7
// and 6.16. What the last says, and what follows for a caller:
//
// # A socket that dies
//
// The kernel marks it dead, multicasts NBD_CMD_LINK_DEAD (Watch) and does nothing
// more. Requests that come now wait in the kernel for Options.DeadTimeout, counted
// from the request, not from the death: an idle device never times out.
// Reconnect within that time gives the device a new socket and they go on.
//
// Requests that had been sent and were not answered are not looked at before their
// own timer fires. Then they are sent again if the socket was replaced. With a
// request time-out of 0 that timer is the queue's io_timeout, 30 s, and nothing
// else happens when it fires; so after Reconnect what was in flight would hang for
// up to 30 s. Connect therefore sets the queue's io_timeout to
// Options.ResendInterval: with one socket this only looks more often, it never ends
// a connection, though the kernel's log then has a line for each request that still
// waits ("Possible stuck request").
//
// After DeadTimeout the waiting request, and all that come later, fail with EIO at
// once; the device is still there. A later Reconnect revives it: the kernel takes
// the new socket and forgets that it gave up. What was sent and unanswered did not
// fail meanwhile when the request time-out is 0; Fail makes it fail.
//
// # The request time-out
//
// 0 means that a slow server is never given up. Any other value ends the
// connection that did not answer in time, and the request is sent again on
// another, or waits for Reconnect; a server that is slow, not dead, would lose its
// connection again and again. So it is 0 here unless wanted. With several sockets
// there is no "never": after the queue's io_timeout, 30 s, the socket is given up,
// alive or not, and the request moves to another. A server that is away for longer,
// behind sockets that do not die with it (package relay), would cost the device one
// socket after the other; so Connect sets io_timeout to more than DeadTimeout then.
//
// # Several sockets
//
// Each is a hardware queue of its own, chosen by the CPU that asks. Requests of a
// dead one go to another that lives (those already sent: when their timer fires).
// The kernel insists on the server's flag CAN_MULTI_CONN: a flush on one
// connection must cover what was answered on all, since the kernel sends one flush
// on one of them.
//
// # Reconnect
//
// The kernel demands the backend identifier that Connect gave, byte for byte, and
// takes the new socket in place of the first dead one. When none is dead it says
// nothing, closes the socket again and reports success.
//
// # Flags for the kernel that are not used
//
// NBD_CFLAG_DISCONNECT_ON_CLOSE ends the device when its last opener closes it:
// right between mkfs and mount. NBD_CFLAG_DESTROY_ON_DISCONNECT removes /dev/nbdN
// with the device; the module makes 16 of them at the start, programs expect to
// find them, and removing one while the next attach asks for it races in the
// kernel ("device at index %d is going down").
//
// # Who owns a device
//
// A device made by netlink belongs to the kernel: the process that made it may
// end. One made by ioctl lives in a thread of that process and dies with it.
package nbddev
