package main

import "github.com/prometheus/client_golang/prometheus"

// The metrics, docs/metrics.md. They are an interface, as the command line is.
var (
	metricBuild   = metric("fsx_build_info", "Always 1; the labels tell the version.", "version", "goversion")
	metricStarted = metric("fsx_nbd_start_time_seconds", "When the server started, as Unix time.")

	metricConnections = metric("fsx_nbd_connections_total", "Connections that were accepted.")
	metricRefused     = metric("fsx_nbd_refused_connections_total", "Connections that ended before they were clients: there were too many, or they broke the protocol.", "reason")
	metricNegotiating = metric("fsx_nbd_negotiating_connections", "Connections that have not chosen an export yet.")
	metricMemory      = metric("fsx_nbd_memory_bytes", "Payload of requests in flight, and buffers that wait for clients.")
	metricMemoryLimit = metric("fsx_nbd_memory_limit_bytes", "What the payload in flight may take, beyond a reserve for each connection.")

	metricClients           = metric("fsx_nbd_clients", "Connected clients.", "export")
	metricExportConnections = metric("fsx_nbd_export_connections_total", "Connections that chose the export.", "export")
	metricRequests          = metric("fsx_nbd_requests_total", "Requests that were answered.", "export", "command")
	metricBytes             = metric("fsx_nbd_request_bytes_total", "Bytes that successful requests named; of read and write their payload.", "export", "command")
	metricErrors            = metric("fsx_nbd_request_errors_total", "Requests that failed, by the error that the client was told.", "export", "command", "error")
	metricDuration          = metric("fsx_nbd_request_duration_seconds", "From the receipt of a whole request until its reply was sent.", "export", "command")
	metricFlush             = metric("fsx_nbd_flush_duration_seconds", "What making writes durable took; one flush may serve many requests.", "export")

	metricFree           = metric("fsx_store_free_bytes", "What the store's disk has left.", "store")
	metricAllocated      = metric("fsx_store_allocated_bytes", "What the store takes on its disk, at most a minute ago.", "store")
	metricBuffers        = metric("fsx_store_buffer_bytes", "Memory for what was written and is not sealed yet.", "store")
	metricMapCache       = metric("fsx_store_map_cache_bytes", "Memory for nodes of maps.", "store")
	metricMapCacheLimit  = metric("fsx_store_map_cache_limit_bytes", "What the cache of nodes may take.", "store")
	metricMapCacheHits   = metric("fsx_store_map_cache_hits_total", "Nodes of maps that were in memory when they were needed.", "store")
	metricMapCacheMisses = metric("fsx_store_map_cache_misses_total", "Nodes of maps that had to be read from the index.", "store")
	metricKeys           = metric("fsx_store_volume_keys", "Volume keys by their state: present, incompletely-removed or absent.", "store", "state")

	metricSize         = metric("fsx_volume_size_bytes", "The volume's size.", "store", "volume")
	metricFailed       = metric("fsx_volume_failed", "1 if the volume's log failed, so that it takes no write any more; else 0.", "store", "volume")
	metricLagBytes     = metric("fsx_volume_checkpoint_lag_bytes", "Log that is not checkpointed, which a recovery would have to read.", "store", "volume")
	metricLagRecords   = metric("fsx_volume_checkpoint_lag_records", "Mappings that are not checkpointed.", "store", "volume")
	metricLagSince     = metric("fsx_volume_last_checkpoint_timestamp_seconds", "When the last checkpoint ended, or the volume was opened, as Unix time.", "store", "volume")
	metricCheckpoints  = metric("fsx_volume_checkpoints_total", "Checkpoints since the volume was opened.", "store", "volume")
	metricCommits      = metric("fsx_volume_commits_total", "Commits of the log since the volume was opened.", "store", "volume")
	metricExtentHits   = metric("fsx_volume_extent_cache_hits_total", "Extents whose cipher was ready when they were read.", "store", "volume")
	metricExtentMisses = metric("fsx_volume_extent_cache_misses_total", "Extents whose cipher had to be set up.", "store", "volume")
	metricFaults       = metric("fsx_volume_read_faults_total", "Blocks that could not be read: damaged, without their key, or because of the disk.", "store", "volume", "reason")
)

var allMetrics = []*prometheus.Desc{
	metricBuild, metricStarted, metricConnections, metricRefused, metricNegotiating, metricMemory, metricMemoryLimit,
	metricClients, metricExportConnections, metricRequests, metricBytes, metricErrors, metricDuration, metricFlush,
	metricFree, metricAllocated, metricBuffers, metricMapCache, metricMapCacheLimit, metricMapCacheHits, metricMapCacheMisses, metricKeys,
	metricSize, metricFailed, metricLagBytes, metricLagRecords, metricLagSince, metricCheckpoints, metricCommits,
	metricExtentHits, metricExtentMisses, metricFaults,
}

func metric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}
