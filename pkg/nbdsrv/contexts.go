package nbdsrv

import (
	"encoding/binary"
	"slices"
	"strings"
)

// maxContexts is how many metadata contexts a client may select.
const maxContexts = 16

// metaContext is a metadata context that a client selected.
type metaContext struct {
	id   uint32 // its own among those of the connection
	name string
}

// metaState is what SET_META_CONTEXT left: it holds for one export name.
type metaState struct {
	export   string
	contexts []metaContext // in the order of selection, at most maxContexts
}

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
		if h.mode == simpleReplies {
			h.replyError(opt.id, repErrInvalid, "neither structured replies nor extended headers were negotiated")
			return
		}
	}
	name, queries, refusal := parseMeta(opt.data)
	if refusal != 0 {
		h.replyError(opt.id, refusal, "malformed request")
		return
	}
	open, err := h.openExport(string(name))
	if err != nil {
		h.refuseExport(opt.id, err)
		return
	}
	found := offeredContexts(open.export.Device)
	if set {
		found = selectContexts(found, queries)
		if len(found) > maxContexts {
			h.replyError(opt.id, repErrTooBig, "too many metadata contexts")
			return
		}
		h.meta = metaState{string(name), numberContexts(found)}
		for _, m := range h.meta.contexts {
			h.replyContext(opt.id, m)
		}
	} else {
		for _, name := range listContexts(found, queries) {
			h.replyContext(opt.id, metaContext{name: name}) // The id is reserved here.
		}
	}
	h.reply(opt.id, repAck)
}

func (h *handshake) replyContext(opt uint32, m metaContext) {
	var id [4]byte
	binary.BigEndian.PutUint32(id[:], m.id)
	h.reply(opt, repMetaContext, id[:], []byte(m.name))
}

// offeredContexts returns the names that can be selected now: base:allocation
// and what the device adds, save names that may not stand in a message or that
// are not the device's to define ("Metadata querying").
func offeredContexts(dev Device) []string {
	names := []string{baseAllocation}
	own, ok := dev.(Contexts)
	if !ok {
		return names
	}
	for _, name := range own.Contexts() {
		namespace, leaf, _ := strings.Cut(name, ":")
		if namespace != "" && namespace != "base" && leaf != "" && validName([]byte(name)) {
			names = append(names, name)
		}
	}
	return names
}

// listContexts returns the offered names that a query asks for. A query is a
// name, or what names begin with up to a colon; none at all asks for every one.
func listContexts(offered []string, queries [][]byte) []string {
	if len(queries) == 0 {
		return offered
	}
	return slices.DeleteFunc(offered, func(name string) bool {
		return !slices.ContainsFunc(queries, func(query []byte) bool {
			q := string(query)
			return q == name || strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
		})
	})
}

// selectContexts returns the offered names that queries are equal to, each
// once, in the order of the queries: at most one more than maxContexts.
func selectContexts(offered []string, queries [][]byte) (selected []string) {
	for _, query := range queries {
		q := string(query)
		if slices.Contains(offered, q) && !slices.Contains(selected, q) {
			if selected = append(selected, q); len(selected) > maxContexts {
				break
			}
		}
	}
	return selected
}

// numberContexts gives base:allocation its fixed id and the others those that
// follow, in order.
func numberContexts(names []string) (contexts []metaContext) {
	next := baseAllocationID + 1
	for _, name := range names {
		if name == baseAllocation {
			contexts = append(contexts, metaContext{baseAllocationID, name})
			continue
		}
		contexts = append(contexts, metaContext{next, name})
		next++
	}
	return contexts
}
