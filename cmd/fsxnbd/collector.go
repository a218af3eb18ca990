package main

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/fsximg/fsx/internal/volume"
	"github.com/fsximg/fsx/pkg/nbdsrv"
	"github.com/prometheus/client_golang/prometheus"
)

// allocatedEvery is how often the files of a store are looked at: there may be
// many.
const allocatedEvery = time.Minute

// collector makes metrics of what the server tells about itself, when it is asked.
type collector struct {
	r         *running
	mu        sync.Mutex // guards allocated
	allocated map[*served]allocation
}

type allocation struct {
	bytes int64
	at    time.Time
}

// newCollector makes the collector of a running server.
func newCollector(r *running) *collector {
	return &collector{r: r, allocated: map[*served]allocation{}}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range allMetrics {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	version, _, _ := strings.Cut(c.r.version, ",")
	gauge(ch, metricBuild, 1, version, runtime.Version())
	gauge(ch, metricStarted, float64(c.r.started.UnixNano())/1e9)
	st := c.r.srv.Stats()
	count(ch, metricConnections, st.Accepted)
	count(ch, metricRefused, st.TooMany, "too_many")
	count(ch, metricRefused, st.Failed, "negotiation")
	gauge(ch, metricNegotiating, float64(st.Negotiating))
	gauge(ch, metricMemory, float64(st.Memory))
	gauge(ch, metricMemoryLimit, float64(st.MemoryLimit))
	for _, e := range st.Exports {
		collectExport(ch, e)
	}
	for _, s := range c.r.exports.stores {
		stats, err := s.st.CountStats()
		if err != nil {
			ch <- prometheus.NewInvalidMetric(metricFree, fmt.Errorf("%s: %w", s.path, err))
			continue
		}
		collectStore(ch, strings.ToValidUTF8(s.base, "?"), stats)
		n, err := c.allocatedBy(s)
		if err != nil {
			ch <- prometheus.NewInvalidMetric(metricAllocated, fmt.Errorf("%s: %w", s.path, err))
			continue
		}
		gauge(ch, metricAllocated, float64(n), strings.ToValidUTF8(s.base, "?"))
	}
}

// allocatedBy is what a store takes on disk, or took a while ago.
func (c *collector) allocatedBy(s *served) (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.allocated[s]
	if ok && time.Since(known.at) < allocatedEvery {
		return known.bytes, nil
	}
	n, err := s.st.Allocated()
	if err == nil {
		c.allocated[s] = allocation{n, time.Now()}
	}
	return n, err
}

func collectExport(ch chan<- prometheus.Metric, e nbdsrv.ExportStats) {
	gauge(ch, metricClients, float64(e.Clients), e.Name)
	count(ch, metricExportConnections, e.Connections, e.Name)
	for _, k := range e.Commands {
		count(ch, metricRequests, k.Latency.Count(), e.Name, k.Command)
		count(ch, metricBytes, k.Bytes, e.Name, k.Command)
		histogram(ch, metricDuration, &k.Latency, e.Name, k.Command)
		for name, n := range k.Errors {
			count(ch, metricErrors, n, e.Name, k.Command, name)
		}
	}
	histogram(ch, metricFlush, &e.Flush, e.Name)
}

func collectStore(ch chan<- prometheus.Metric, store string, st volume.StoreStats) {
	gauge(ch, metricFree, float64(st.Free), store)
	gauge(ch, metricBuffers, float64(st.BufferBytes), store)
	gauge(ch, metricMapCache, float64(st.MapCacheBytes), store)
	gauge(ch, metricMapCacheLimit, float64(st.MapCacheLimit), store)
	count(ch, metricMapCacheHits, st.MapCacheHits, store)
	count(ch, metricMapCacheMisses, st.MapCacheMisses, store)
	states := map[volume.KeyState]int{volume.KeyPresent: 0, volume.KeyIncompletelyRemoved: 0, volume.KeyAbsent: 0}
	for _, k := range st.Keys {
		states[k.State]++
	}
	for state, n := range states {
		gauge(ch, metricKeys, float64(n), store, state.String())
	}
	seen := map[string]bool{}
	for _, v := range st.Volumes {
		if !seen[v.Name] { // a rename may be under way
			seen[v.Name] = true
			collectVolume(ch, store, v)
		}
	}
}

func collectVolume(ch chan<- prometheus.Metric, store string, v volume.VolumeStats) {
	gauge(ch, metricSize, float64(v.Size), store, v.Name)
	failed := 0.0
	if v.Failed {
		failed = 1
	}
	gauge(ch, metricFailed, failed, store, v.Name)
	gauge(ch, metricLagBytes, float64(v.Lag.Bytes), store, v.Name)
	gauge(ch, metricLagRecords, float64(v.Lag.Records), store, v.Name)
	gauge(ch, metricLagSince, float64(v.Lag.Since.UnixNano())/1e9, store, v.Name)
	count(ch, metricCheckpoints, v.Checkpoints, store, v.Name)
	count(ch, metricCommits, v.Commits, store, v.Name)
	count(ch, metricExtentHits, v.ExtentHits, store, v.Name)
	count(ch, metricExtentMisses, v.ExtentMisses, store, v.Name)
	count(ch, metricFaults, v.Faults.Damaged, store, v.Name, "damaged")
	count(ch, metricFaults, v.Faults.KeyMissing, store, v.Name, "key_missing")
	count(ch, metricFaults, v.Faults.Other, store, v.Name, "io")
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func count(ch chan<- prometheus.Metric, d *prometheus.Desc, v uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func histogram(ch chan<- prometheus.Metric, d *prometheus.Desc, l *nbdsrv.Latency, labels ...string) {
	buckets := make(map[float64]uint64, nbdsrv.LatencyClasses)
	n := uint64(0)
	for i := range nbdsrv.LatencyClasses {
		n += l.Classes[i]
		buckets[nbdsrv.LatencyBound(i).Seconds()] = n
	}
	ch <- prometheus.MustNewConstHistogram(d, l.Count(), l.Sum.Seconds(), buckets, labels...)
}
