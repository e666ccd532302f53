-- One infer request from a file, and the figures of the run as one line of JSON.
-- Arguments: the file with the body, the length of its JSON header.

function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method = "POST"
   wrk.body = file:read("*a")
   wrk.headers["Content-Type"] = "application/octet-stream"
   wrk.headers["Inference-Header-Content-Length"] = args[2]
   file:close()
end

function done(summary, latency, requests)
   local errors = summary.errors
   print(string.format(
      '{"requests": %.0f, "microseconds": %.0f, "bytes": %.0f, "p50_us": %.0f, "p99_us": %.0f, ' ..
      '"refused": %.0f, "failed": %.0f}',
      summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(99), errors.status,
      errors.connect + errors.read + errors.write + errors.timeout))
end
