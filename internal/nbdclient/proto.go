package nbdclient

import "github.com/pojntfx/go-nbd/pkg/protocol"

// What go-nbd's protocol package lacks of the NBD protocol (doc/proto.md).
const (
	flagNoZeroes = 1 << 1 // handshake and client flag

	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = 8
	optSetMetaContext  = 10

	repAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext = 4
	repError       = 1 << 31

	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisconnect  = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = 3
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	magicStructuredReply = 0x668e33ef
	chunkDone            = 1 << 0
	chunkNone            = 0
	chunkOffsetData      = 1
	chunkOffsetHole      = 2
	chunkBlockStatus     = 5
	chunkErrorBit        = 1 << 15

	stateHole = 1 << 0
	stateZero = 1 << 1

	contextAllocation = "base:allocation"
)
