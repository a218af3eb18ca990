package nbdsrv

import (
	"encoding/binary"
	"errors"
)

// answer replies to one option. A non-nil export starts the transmission.
func (h *handshake) answer(opt option) (*openExport, error) {
	if h.srv.closing() && opt.id != optAbort {
		if opt.id == optExportName {
			return nil, errEnd
		}
		h.replyError(opt.id, repErrShutdown, "server is shutting down")
		return nil, nil
	}
	if h.lacksTLS() && opt.id != optStartTLS && opt.id != optAbort {
		if opt.id == optExportName {
			return nil, errEnd
		}
		h.demandTLS(opt.id)
		return nil, nil
	}
	switch opt.id {
	case optExportName:
		return h.exportName(opt)
	case optAbort:
		h.reply(opt.id, repAck)
		return nil, errEnd
	case optList:
		h.list(opt)
	case optInfo, optGo:
		return h.info(opt)
	case optStructuredReply:
		if len(opt.data) != 0 {
			h.replyError(opt.id, repErrInvalid, "option takes no data")
			break
		}
		if h.mode == extendedHeaders {
			h.replyError(opt.id, repErrExtended, "extended headers were negotiated")
			break
		}
		h.mode = structuredReplies
		h.reply(opt.id, repAck)
	case optExtendedHeaders:
		if len(opt.data) != 0 {
			h.replyError(opt.id, repErrInvalid, "option takes no data")
			break
		}
		h.mode = extendedHeaders
		h.reply(opt.id, repAck)
	case optListMeta, optSetMeta:
		h.metaContext(opt)
	case optStartTLS:
		return nil, h.startTLS(opt)
	default:
		h.replyError(opt.id, repErrUnsup, "option is not supported")
	}
	return nil, nil
}

// exportName answers NBD_OPT_EXPORT_NAME, which can only succeed or hang up. A
// client that has negotiated extended headers must not use it.
func (h *handshake) exportName(opt option) (*openExport, error) {
	if !validName(opt.data) || h.mode == extendedHeaders {
		return nil, errEnd
	}
	open, err := h.openExport(string(opt.data))
	if err != nil {
		return nil, errEnd
	}
	var p [10 + 124]byte
	size, flags := h.describe(open)
	binary.BigEndian.PutUint64(p[:], size)
	binary.BigEndian.PutUint16(p[8:], flags)
	n := len(p)
	if h.noZeroes {
		n = 10
	}
	_, err = h.bw.Write(p[:n])
	return open, err
}

// list answers NBD_OPT_LIST: one reply per export, the description behind the
// name.
func (h *handshake) list(opt option) {
	if len(opt.data) != 0 {
		h.replyError(opt.id, repErrInvalid, "option takes no data")
		return
	}
	if h.srv.cfg.NoList {
		h.replyError(opt.id, repErrPolicy, "listing exports is disabled")
		return
	}
	for _, e := range h.srv.cfg.Exports.List(&h.client) {
		name, tail := []byte(e.Name), []byte(wireText(e.Description))
		if !validName(name) {
			continue
		}
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(name)))
		h.reply(opt.id, repServer, n[:], name, tail)
	}
	h.reply(opt.id, repAck)
}

// parseInfo takes the data of INFO and GO apart; its lengths must add up.
func parseInfo(p []byte) (name, requests []byte, ok bool) {
	if len(p) < 6 {
		return nil, nil, false
	}
	n := uint64(binary.BigEndian.Uint32(p))
	if n > uint64(len(p)-6) {
		return nil, nil, false
	}
	name, p = p[4:4+n], p[4+n:]
	requests = p[2:]
	if len(requests) != 2*int(binary.BigEndian.Uint16(p)) || !validName(name) {
		return nil, nil, false
	}
	return name, requests, true
}

// info answers NBD_OPT_INFO and NBD_OPT_GO.
func (h *handshake) info(opt option) (*openExport, error) {
	name, requests, ok := parseInfo(opt.data)
	if !ok {
		h.replyError(opt.id, repErrInvalid, "malformed request")
		return nil, nil
	}
	open, err := h.openExport(string(name))
	if err != nil {
		h.refuseExport(opt.id, err)
		return nil, nil
	}
	h.sendInfo(opt.id, open, requests)
	h.reply(opt.id, repAck)
	if opt.id == optGo {
		return open, nil
	}
	return nil, nil
}

// refuseExport tells why an export cannot be had.
func (h *handshake) refuseExport(opt uint32, err error) {
	switch {
	case errors.Is(err, ErrUnknownExport):
		h.replyError(opt, repErrUnknown, "unknown export")
	case errors.Is(err, ErrTLSRequired) && h.client.TLS == nil && h.srv.cfg.TLS != nil && h.fixed:
		h.replyError(opt, repErrTLSReqd, "export requires TLS")
	case errors.Is(err, ErrTLSRequired), errors.Is(err, ErrNotAllowed):
		h.replyError(opt, repErrPolicy, "export is not for this client")
	default:
		h.replyError(opt, repErrUnknown, err.Error())
	}
}

// sendInfo sends NBD_INFO_EXPORT and, once each, what else was asked for.
func (h *handshake) sendInfo(opt uint32, open *openExport, requests []byte) {
	var p [14]byte
	size, flags := h.describe(open)
	binary.BigEndian.PutUint16(p[:], infoExport)
	binary.BigEndian.PutUint64(p[2:], size)
	binary.BigEndian.PutUint16(p[10:], flags)
	h.reply(opt, repInfo, p[:12])

	sent := map[uint16]bool{}
	for ; len(requests) >= 2; requests = requests[2:] {
		typ := binary.BigEndian.Uint16(requests)
		if sent[typ] {
			continue
		}
		sent[typ] = true
		binary.BigEndian.PutUint16(p[:], typ)
		switch typ {
		case infoName:
			if name := []byte(open.export.Name); validName(name) {
				h.reply(opt, repInfo, p[:2], name)
			}
		case infoDescription:
			h.reply(opt, repInfo, p[:2], []byte(wireText(open.export.Description)))
		case infoBlockSize:
			binary.BigEndian.PutUint32(p[2:], MinBlock)
			binary.BigEndian.PutUint32(p[6:], PreferredBlock)
			binary.BigEndian.PutUint32(p[10:], MaxBlock)
			h.reply(opt, repInfo, p[:14])
		}
	}
}

// describe returns the size and the transmission flags of an export, given
// what was negotiated so far.
func (h *handshake) describe(open *openExport) (size uint64, flags uint16) {
	flags = flagHasFlags | flagFlush | flagFUA | flagCache
	if open.export.ReadOnly || open.export.Device.ReadOnly() {
		flags |= flagReadOnly
	} else {
		flags |= flagTrim | flagWriteZeroes | flagFastZero
	}
	if h.mode != simpleReplies {
		flags |= flagDF
	}
	if h.mode == extendedHeaders && len(h.meta.contexts) > 0 && h.meta.export == open.name {
		flags |= flagStatusSubset
	}
	if !h.srv.cfg.NoMultiConn {
		flags |= flagCanMultiConn
	}
	return uint64(open.export.Device.Size()), flags
}
