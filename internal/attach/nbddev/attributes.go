package nbddev

import (
	"fmt"

	"github.com/mdlayher/netlink"
)

// Generic netlink names and numbers (nbd-netlink.h).
const (
	familyName = "nbd"
	groupName  = "nbd_mc_group"
	version    = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3
	cmdLinkDead    = 4
	cmdStatus      = 5
)

// Attributes of a message: NBD_ATTR_…
const (
	attrIndex       = 1  // u32
	attrSize        = 2  // u64, bytes
	attrBlockSize   = 3  // u64, bytes
	attrTimeout     = 4  // u64, seconds
	attrServerFlags = 5  // u64, the transmission flags
	attrSockets     = 7  // list of sockItem
	attrDeadTimeout = 8  // u64, seconds
	attrDeviceList  = 9  // list of deviceItem
	attrBackend     = 10 // string; since Linux 5.14, ignored before
)

// Members of the lists.
const (
	sockItem        = 1 // in attrSockets
	sockFD          = 1 // u32, in sockItem
	deviceItem      = 1 // in attrDeviceList
	deviceIndex     = 1 // u32, in deviceItem
	deviceConnected = 2 // u8, in deviceItem
)

// configuration is what CONNECT and RECONFIGURE carry. Pointers that are nil are
// left out of the message.
type configuration struct {
	index       *uint32
	size        *uint64
	blockSize   *uint64
	flags       *uint64
	timeout     *uint64 // seconds
	deadTimeout *uint64 // seconds
	sockets     []uint32
	backend     string
}

// encode gives the attributes of a configuration. Lists are nested without
// NLA_F_NESTED being demanded; the kernel masks it out.
func (c configuration) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if c.index != nil {
		e.Uint32(attrIndex, *c.index)
	}
	for _, a := range []struct {
		kind  uint16
		value *uint64
	}{
		{attrSize, c.size}, {attrBlockSize, c.blockSize}, {attrTimeout, c.timeout},
		{attrServerFlags, c.flags}, {attrDeadTimeout, c.deadTimeout},
	} {
		if a.value != nil {
			e.Uint64(a.kind, *a.value)
		}
	}
	if len(c.sockets) > 0 {
		e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
			for _, fd := range c.sockets {
				list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(sockFD, fd)
					return nil
				})
			}
			return nil
		})
	}
	if c.backend != "" {
		e.String(attrBackend, c.backend)
	}
	return e.Encode()
}

// parseIndex finds the device's number in an answer to CONNECT or in LINK_DEAD.
func parseIndex(data []byte) (int, error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return 0, err
	}
	index, found := uint32(0), false
	for d.Next() {
		if d.Type() == attrIndex {
			index, found = d.Uint32(), true
		}
	}
	switch {
	case d.Err() != nil:
		return 0, fmt.Errorf("nbd netlink message: %w", d.Err())
	case !found:
		return 0, fmt.Errorf("nbd netlink message without a device's number")
	}
	return int(index), nil
}

// parseStatus reads an answer to STATUS: for each device that exists, whether it
// has a configuration. A device that is merely open has one, too.
func parseStatus(data []byte) (map[int]bool, error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil, err
	}
	configured := map[int]bool{}
	for d.Next() {
		if d.Type() != attrDeviceList {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				if list.Type() == deviceItem {
					list.Nested(func(item *netlink.AttributeDecoder) error { return parseDevice(item, configured) })
				}
			}
			return nil
		})
	}
	if d.Err() != nil {
		return nil, fmt.Errorf("nbd netlink status: %w", d.Err())
	}
	return configured, nil
}

func parseDevice(item *netlink.AttributeDecoder, configured map[int]bool) error {
	index, has := -1, false
	for item.Next() {
		switch item.Type() {
		case deviceIndex:
			index = int(item.Uint32())
		case deviceConnected:
			has = item.Uint8() != 0
		}
	}
	if index < 0 {
		return fmt.Errorf("a device without a number")
	}
	configured[index] = has
	return nil
}
