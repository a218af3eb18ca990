package nbdsrv

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What go-nbd's protocol package does not name. Values: "Constants" and the
// section named at each group.

// Handshake flags and client flags ("Handshake phase").
const (
	handshakeFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	handshakeNoZeroes      = uint16(1 << 1)
)

// Options ("Option types").
const (
	optExportName      = uint32(1)
	optAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList            = protocol.NEGOTIATION_ID_OPTION_LIST
	optStartTLS        = uint32(5)
	optInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = uint32(8)
	optListMeta        = uint32(9)
	optSetMeta         = uint32(10)
	optExtendedHeaders = uint32(11)
)

// Option replies ("Option reply types").
const (
	repAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer      = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext = uint32(4)
	repErrUnsup    = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy   = uint32(2 | 1<<31)
	repErrInvalid  = uint32(3 | 1<<31)
	repErrTLSReqd  = uint32(5 | 1<<31)
	repErrUnknown  = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown = uint32(7 | 1<<31)
	repErrTooBig   = uint32(9 | 1<<31)
	repErrExtended = uint32(10 | 1<<31) // NBD_REP_ERR_EXT_HEADER_REQD
)

// Information types ("Option reply types", NBD_REP_INFO).
const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags ("Transmission flags").
const (
	flagHasFlags     = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	flagReadOnly     = uint16(1 << 1)
	flagFlush        = uint16(1 << 2)
	flagFUA          = uint16(1 << 3)
	flagTrim         = uint16(1 << 5)
	flagWriteZeroes  = uint16(1 << 6)
	flagDF           = uint16(1 << 7)
	flagCanMultiConn = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	flagCache        = uint16(1 << 10)
	flagFastZero     = uint16(1 << 11)
	flagStatusSubset = uint16(1 << 12) // NBD_FLAG_BLOCK_STATUS_PAYLOAD
)

// Commands ("Request types").
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
)

// Command flags ("Command flags").
const (
	cmdFlagFUA        = uint16(1 << 0)
	cmdFlagNoHole     = uint16(1 << 1)
	cmdFlagDF         = uint16(1 << 2)
	cmdFlagReqOne     = uint16(1 << 3)
	cmdFlagFastZero   = uint16(1 << 4)
	cmdFlagPayloadLen = uint16(1 << 5) // extended headers only
)

// Structured and extended replies ("Structured reply types").
const (
	structuredMagic = uint32(0x668e33ef)
	chunkFlagDone   = uint16(1 << 0)

	chunkNone           = uint16(0)
	chunkOffsetData     = uint16(1)
	chunkBlockStatus    = uint16(5)
	chunkBlockStatusExt = uint16(6)
	chunkError          = uint16(1<<15 | 1)
	chunkErrorOffset    = uint16(1<<15 | 2)
)

// Magic numbers of extended headers ("Request message", "Extended reply chunk
// message" of the branch extension-ext-header).
const (
	extendedRequestMagic = uint32(0x21e41c71)
	extendedReplyMagic   = uint32(0x6e8a278c)
)

// base:allocation ("The base: namespace").
const (
	baseAllocation   = "base:allocation"
	baseAllocationID = uint32(1)
	stateHole        = uint32(1 << 0)
	stateZero        = uint32(1 << 1)
)

// Sizes of the messages, in bytes.
const (
	optionHeaderLen = 16
	requestLen      = 28
	simpleReplyLen  = 16
	chunkHeaderLen  = 20
	extendedLen     = 32   // header of an extended request, and of an extended reply
	maxString       = 4096 // "Conventions"
)

// replyMode is the kind of headers that were negotiated. Each kind can do what
// those before it can.
type replyMode uint8

const (
	simpleReplies replyMode = iota
	structuredReplies
	extendedHeaders
)

func (m replyMode) String() string {
	return [...]string{"simple", "structured", "extended"}[m]
}

// request is a decoded request message ("Request message").
type request struct {
	cookie  uint64
	offset  uint64
	length  uint64 // as it came; of a BLOCK_STATUS with a payload, what that says
	payload uint64 // bytes behind the header that belong to the request
	cmd     uint16
	flags   uint16
	subset  uint16 // of BLOCK_STATUS: bit i selects conn.contexts[i]; 0 is all
}

// commandName is how the log names a command.
func commandName(cmd uint16) string {
	names := [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}
	if int(cmd) < len(names) {
		return names[cmd]
	}
	return "unknown"
}

// changes says whether r changes the device's bytes.
func (r request) changes() bool {
	return r.cmd == cmdWrite || r.cmd == cmdTrim || r.cmd == cmdWriteZeroes
}

// decodeRequest reads the 28 bytes at p; ok is false if the magic is wrong.
func decodeRequest(p []byte) (r request, ok bool) {
	_ = p[requestLen-1]
	r.flags = binary.BigEndian.Uint16(p[4:])
	r.cmd = binary.BigEndian.Uint16(p[6:])
	r.cookie = binary.BigEndian.Uint64(p[8:])
	r.offset = binary.BigEndian.Uint64(p[16:])
	r.length = uint64(binary.BigEndian.Uint32(p[24:]))
	if r.cmd == cmdWrite {
		r.payload = r.length
	}
	return r, binary.BigEndian.Uint32(p) == protocol.TRANSMISSION_MAGIC_REQUEST
}

// decodeExtended is decodeRequest for the 32 bytes of an extended request. A
// flag, not the command, says whether its length is that of a payload.
func decodeExtended(p []byte) (r request, ok bool) {
	_ = p[extendedLen-1]
	r.flags = binary.BigEndian.Uint16(p[4:])
	r.cmd = binary.BigEndian.Uint16(p[6:])
	r.cookie = binary.BigEndian.Uint64(p[8:])
	r.offset = binary.BigEndian.Uint64(p[16:])
	r.length = binary.BigEndian.Uint64(p[24:])
	if r.flags&cmdFlagPayloadLen != 0 {
		r.payload = r.length
	}
	return r, binary.BigEndian.Uint32(p) == extendedRequestMagic
}

// putSimpleReply writes a simple reply's header to p.
func putSimpleReply(p []byte, cookie uint64, errno uint32) int {
	_ = p[simpleReplyLen-1]
	binary.BigEndian.PutUint32(p, protocol.TRANSMISSION_MAGIC_REPLY)
	binary.BigEndian.PutUint32(p[4:], errno)
	binary.BigEndian.PutUint64(p[8:], cookie)
	return simpleReplyLen
}

// putChunkHeader writes the header of a structured reply's chunk to p; flags
// are chunkFlagDone for the last one, n is the length of the chunk's payload.
func putChunkHeader(p []byte, flags, typ uint16, cookie uint64, n uint32) int {
	_ = p[chunkHeaderLen-1]
	binary.BigEndian.PutUint32(p, structuredMagic)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], typ)
	binary.BigEndian.PutUint64(p[8:], cookie)
	binary.BigEndian.PutUint32(p[16:], n)
	return chunkHeaderLen
}

// putExtendedHeader writes the header of an extended reply's chunk to p. at is
// the offset of the request, whatever place the payload is about.
func putExtendedHeader(p []byte, flags, typ uint16, cookie, at, n uint64) int {
	_ = p[extendedLen-1]
	binary.BigEndian.PutUint32(p, extendedReplyMagic)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], typ)
	binary.BigEndian.PutUint64(p[8:], cookie)
	binary.BigEndian.PutUint64(p[16:], at)
	binary.BigEndian.PutUint64(p[24:], n)
	return extendedLen
}

// putChunk writes the header of a chunk of the reply to r to p, and returns its
// length.
func (m replyMode) putChunk(p []byte, flags, typ uint16, r request, n int) int {
	if m == extendedHeaders {
		return putExtendedHeader(p, flags, typ, r.cookie, r.offset, uint64(n))
	}
	return putChunkHeader(p, flags, typ, r.cookie, uint32(n))
}

// chunkLen is the length of a chunk's header.
func (m replyMode) chunkLen() int {
	if m == extendedHeaders {
		return extendedLen
	}
	return chunkHeaderLen
}

// putErrorChunk writes an ERROR chunk, or with at >= 0 an ERROR_OFFSET chunk,
// to p, which holds at least 64 bytes; msg is cut to what fits.
func (m replyMode) putErrorChunk(p []byte, r request, errno uint32, msg string, at int64) int {
	typ, tail := chunkError, 0
	if at >= 0 {
		typ, tail = chunkErrorOffset, 8
	}
	text := m.chunkLen() + 6
	n := copy(p[text:len(p)-tail], msg)
	m.putChunk(p, chunkFlagDone, typ, r, 6+n+tail)
	binary.BigEndian.PutUint32(p[text-6:], errno)
	binary.BigEndian.PutUint16(p[text-2:], uint16(n))
	if at >= 0 {
		binary.BigEndian.PutUint64(p[text+n:], uint64(at))
	}
	return text + n + tail
}
