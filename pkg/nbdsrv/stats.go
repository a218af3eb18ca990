package nbdsrv

import (
	"cmp"
	"slices"
	"time"
)

// LatencyClasses is the number of classes of a Latency but the last, which has
// no bound.
const LatencyClasses = 22

// LatencyBound is the longest time that class i of a Latency holds: 4 µs of
// class 0, and twice that of the one before of each other.
func LatencyBound(i int) time.Duration { return 4 * time.Microsecond << i }

// Latency says how long something took, how often.
type Latency struct {
	// Sum is the time that all took together.
	Sum time.Duration
	// Classes count those that took longer than the bound of the class before,
	// and not longer than their own LatencyBound. The last holds all the rest.
	Classes [LatencyClasses + 1]uint64
}

// Count is how many were measured.
func (l *Latency) Count() (n uint64) {
	for _, k := range l.Classes {
		n += k
	}
	return n
}

// Mean is the average, 0 if nothing was measured.
func (l *Latency) Mean() time.Duration {
	if n := l.Count(); n > 0 {
		return l.Sum / time.Duration(n)
	}
	return 0
}

// Quantile is about the time that the part q (0 to 1) of all did not exceed, as
// if those of a class were spread evenly in it; 0 if nothing was measured.
func (l *Latency) Quantile(q float64) time.Duration {
	want := q * float64(l.Count())
	seen := 0.0
	for i, k := range l.Classes {
		if k == 0 || seen+float64(k) < want {
			seen += float64(k)
			continue
		}
		if i == LatencyClasses {
			return LatencyBound(LatencyClasses - 1)
		}
		low := time.Duration(0)
		if i > 0 {
			low = LatencyBound(i - 1)
		}
		return low + time.Duration((want-seen)/float64(k)*float64(LatencyBound(i)-low))
	}
	return 0
}

// Add adds what another Latency has.
func (l *Latency) Add(other *Latency) {
	l.Sum += other.Sum
	for i, k := range other.Classes {
		l.Classes[i] += k
	}
}

// Sub takes away what an earlier Latency of the same had: what is left is of the
// time since.
func (l *Latency) Sub(earlier *Latency) {
	l.Sum -= earlier.Sum
	for i, k := range earlier.Classes {
		l.Classes[i] -= k
	}
}

// CommandStats are the requests of one command that were answered.
type CommandStats struct {
	// Command is its name in lower case, such as "write_zeroes"; "unknown" stands
	// for all that there are not.
	Command string
	// Bytes are those that the successful requests named: of READ and WRITE their
	// payload.
	Bytes uint64
	// Errors count the requests that failed, by the name of the error that the
	// client was told. They are in Latency, too.
	Errors map[string]uint64
	// Latency is from receipt, whole, to the end of the call that sent the reply.
	// Requests that arrived together, and were answered together, took the same.
	Latency Latency
}

// Traffic is what connections did.
type Traffic struct {
	// Commands are those that there were requests of, by number.
	Commands []CommandStats
	// Flush is how long Device.Flush took. One call may serve many requests.
	Flush Latency
}

// ExportStats describe an export that has clients or had some.
type ExportStats struct {
	Name        string
	Clients     int    // that are connected
	Connections uint64 // that began, these included
	Traffic
}

// ClientStats describe a connection in its transmission phase.
type ClientStats struct {
	ID       uint64 // no other connection of this server has or had it
	Peer     string
	Export   string
	Since    time.Time // of the accept
	Headers  string    // of requests and replies: "simple", "structured" or "extended"
	ReadOnly bool
	Requests int   // that wait for a worker, for a flush, or to be sent
	Memory   int64 // bytes of payload that they hold, and of a buffer of replies that is being sent
	Traffic
}

// Stats describe a server. Counts are since it was made.
type Stats struct {
	Exports     []ExportStats // by name
	Clients     []ClientStats // oldest first
	Negotiating int           // connections that are not clients yet
	Accepted    uint64        // connections
	TooMany     uint64        // of them were closed because there were MaxConns
	Failed      uint64        // of them broke the protocol in their negotiation, failed at TLS, or took too long
	Memory      int64         // of all Clients
	MemoryLimit int64         // Config.Memory
}

// maxIdleExports bounds the exports without clients that are remembered. A
// server of clones that come and go would grow without end.
const maxIdleExports = 1024

// exportTotals are what the ended connections to an export did.
type exportTotals struct {
	clients     int
	connections uint64
	idle        time.Time // since when there are no clients
	past        totals
}

// Stats tells what the server does and did. It takes the server's lock and, one
// after the other, that of each connection, but waits for no request. Counts
// that belong together may differ by what is being counted meanwhile.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Stats{Accepted: s.accepted, TooMany: s.tooMany, Failed: s.failed.Load(), MemoryLimit: s.cfg.Memory}
	sums := make(map[string]*totals, len(s.exports))
	for name, e := range s.exports {
		sum := e.past
		sums[name] = &sum
	}
	for c := range s.conns {
		if c.counts == nil {
			out.Negotiating++
			continue
		}
		var own totals
		own.add(c.counts)
		if sum := sums[c.exportName]; sum != nil {
			sum.addTotals(&own)
		}
		c.mu.Lock()
		client := ClientStats{
			ID: c.id, Peer: c.peer, Export: c.exportName, Since: c.since, Headers: c.headers.String(),
			ReadOnly: c.isReadOnly, Requests: c.requests, Memory: c.bytes + c.untaken(), Traffic: own.traffic(),
		}
		c.mu.Unlock()
		out.Memory += client.Memory
		out.Clients = append(out.Clients, client)
	}
	for name, e := range s.exports {
		out.Exports = append(out.Exports, ExportStats{Name: name, Clients: e.clients, Connections: e.connections, Traffic: sums[name].traffic()})
	}
	slices.SortFunc(out.Exports, func(a, b ExportStats) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(out.Clients, func(a, b ClientStats) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// countInLocked begins to count what a connection does.
func (s *Server) countInLocked(c *conn, ses *session, readOnly bool) {
	c.counts = new(counters)
	c.exportName, c.headers, c.isReadOnly = ses.open.export.Name, ses.mode, readOnly
	e := s.exports[c.exportName]
	if e == nil {
		e = &exportTotals{}
		s.exports[c.exportName] = e
	}
	e.clients++
	e.connections++
}

// countOutLocked adds what a connection did to what is known of its export.
func (s *Server) countOutLocked(c *conn) {
	if c.counts == nil {
		return
	}
	e := s.exports[c.exportName]
	e.past.add(c.counts)
	if e.clients--; e.clients > 0 {
		return
	}
	e.idle = time.Now()
	s.forgetIdleLocked()
}

// forgetIdleLocked drops the export that has had no client for the longest, if
// there are too many such.
func (s *Server) forgetIdleLocked() {
	if len(s.exports) <= maxIdleExports {
		return
	}
	idle, oldest := 0, ""
	for name, e := range s.exports {
		if e.clients > 0 {
			continue
		}
		idle++
		if oldest == "" || e.idle.Before(s.exports[oldest].idle) {
			oldest = name
		}
	}
	if idle > maxIdleExports {
		delete(s.exports, oldest)
	}
}
