package nbdsrv

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// Wire values ("Error values"): the only numbers a reply may carry.
const (
	wireEPERM     = uint32(1)
	wireEIO       = uint32(5)
	wireEINVAL    = uint32(22)
	wireENOSPC    = uint32(28)
	wireEOVERFLOW = uint32(75)
	wireENOTSUP   = uint32(95)
	wireESHUTDOWN = uint32(108)
)

// wireError maps a device's error for one request. ENOTSUP is kept only where
// the protocol gives it a meaning (a fast zero), EOVERFLOW for READ with DF;
// ENOMEM is never sent, as clients take it for their own.
func wireError(err error, r request) uint32 {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return wireEIO
	}
	switch errno {
	case syscall.EPERM, syscall.EROFS, syscall.EACCES:
		return wireEPERM
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return wireENOSPC
	case syscall.EINVAL:
		return wireEINVAL
	case syscall.ESHUTDOWN:
		return wireESHUTDOWN
	case syscall.ENOTSUP:
		if r.cmd == cmdWriteZeroes && r.flags&cmdFlagFastZero != 0 {
			return wireENOTSUP
		}
		return wireEINVAL
	case syscall.EOVERFLOW:
		if r.cmd == cmdRead && r.flags&cmdFlagDF != 0 {
			return wireEOVERFLOW
		}
		return wireEINVAL
	default:
		return wireEIO
	}
}

// failure is what a reply says about a failed request.
type failure struct {
	errno  uint32
	offset int64 // -1, or where in the device a READ failed
	text   string
}

// refusal is a failure found before the device was asked.
func refusal(errno uint32, text string) *failure {
	return &failure{errno: errno, offset: -1, text: text}
}

// The refusals. They are shared, and never changed.
var (
	failReadOnly   = refusal(wireEPERM, "export is read-only")
	failPastEnd    = refusal(wireEINVAL, "request reaches past the end of the export")
	failNoSpace    = refusal(wireENOSPC, "request reaches past the end of the export")
	failTooLarge   = refusal(wireEINVAL, "payload is larger than the maximum")
	failFlags      = refusal(wireEINVAL, "command flag is unknown or does not apply")
	failNoPayload  = refusal(wireEINVAL, "WRITE needs the flag PAYLOAD_LEN")
	failSubset     = refusal(wireEINVAL, "malformed list of metadata contexts")
	failCommand    = refusal(wireEINVAL, "unknown command")
	failNoContext  = refusal(wireEINVAL, "no metadata context was negotiated")
	failZeroLength = refusal(wireEINVAL, "length is zero")
	failNonZero    = refusal(wireEINVAL, "offset and length must be zero")
)

// deviceFailure describes a device's error to the client. Only the text of an
// error that names its place leaves the server; any other may hold paths.
func deviceFailure(err error, r request) *failure {
	f := &failure{errno: wireError(err, r), offset: -1}
	var place interface {
		error
		Offset() int64
	}
	if r.cmd == cmdRead && errors.As(err, &place) {
		at := place.Offset()
		if at >= int64(r.offset) && at-int64(r.offset) < int64(r.length) {
			f.offset = at
			f.text = wireText(fmt.Sprintf("%v (offset %d)", place, at))
			return f
		}
	}
	f.text = errnoText(f.errno)
	return f
}

func errnoText(errno uint32) string {
	if errno == wireENOTSUP {
		return "operation not supported"
	}
	return syscall.Errno(errno).Error()
}

// wireText makes s fit for the wire ("Conventions"): UTF-8 without NUL, cut to
// what is useful in a message.
func wireText(s string) string {
	const limit = 256
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "")
	}
	return s
}
