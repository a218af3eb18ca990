package nbdsrv

import "encoding/binary"

// parseMeta takes the data of the meta context options apart.
func parseMeta(p []byte) (name []byte, queries [][]byte, refusal uint32) {
	take := func() ([]byte, bool) {
		if len(p) < 4 {
			return nil, false
		}
		n := uint64(binary.BigEndian.Uint32(p))
		if n > uint64(len(p)-4) {
			return nil, false
		}
		s := p[4 : 4+n]
		p = p[4+n:]
		return s, validName(s)
	}
	name, ok := take()
	if !ok || len(p) < 4 {
		return nil, nil, repErrInvalid
	}
	count := binary.BigEndian.Uint32(p)
	p = p[4:]
	if count > maxQueries {
		return nil, nil, repErrTooBig
	}
	for range count {
		query, ok := take()
		if !ok {
			return nil, nil, repErrInvalid
		}
		queries = append(queries, query)
	}
	if len(p) != 0 {
		return nil, nil, repErrInvalid
	}
	return name, queries, 0
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT. The latter
// forgets what an earlier one selected even if it fails.
func (h *handshake) metaContext(opt option) {
	set := opt.id == optSetMeta
	if set {
		h.meta = metaState{}
		if !h.structured {
			h.replyError(opt.id, repErrInvalid, "structured replies were not negotiated")
			return
		}
	}
	name, queries, refusal := parseMeta(opt.data)
	if refusal != 0 {
		h.replyError(opt.id, refusal, "malformed request")
		return
	}
	if _, err := h.openExport(string(name)); err != nil {
		h.refuseExport(opt.id, err)
		return
	}
	found := !set && len(queries) == 0
	for _, query := range queries {
		switch string(query) {
		case baseAllocation:
			found = true
		case "base:":
			found = found || !set
		}
	}
	if found {
		var id [4]byte
		if set {
			binary.BigEndian.PutUint32(id[:], baseAllocationID)
			h.meta = metaState{export: string(name), allocation: true}
		}
		h.reply(opt.id, repMetaContext, id[:], []byte(baseAllocation))
	}
	h.reply(opt.id, repAck)
}
