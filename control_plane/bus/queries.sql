-- name: add
INSERT INTO bus_deliveries (consumer_group, topic, key, event_id, payload)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (consumer_group, topic, event_id) DO NOTHING

-- A message waits behind an earlier one of its key that is not yet due.
-- name: next_batch
SELECT delivery_id, topic, key, event_id, payload, tries
FROM bus_deliveries AS d
WHERE consumer_group = $1 AND next_try_at <= clock_timestamp()
  AND NOT EXISTS (
    SELECT 1 FROM bus_deliveries AS earlier
    WHERE earlier.consumer_group = d.consumer_group AND earlier.topic = d.topic AND earlier.key = d.key
      AND earlier.delivery_id < d.delivery_id AND earlier.next_try_at > clock_timestamp())
ORDER BY delivery_id
LIMIT $2

-- name: next_due_s
SELECT extract(epoch FROM min(next_try_at) - clock_timestamp())::float8 FROM bus_deliveries
WHERE consumer_group = $1 AND next_try_at > clock_timestamp()

-- name: handled
DELETE FROM bus_deliveries WHERE delivery_id = ANY($1::bigint[])

-- name: failed
UPDATE bus_deliveries
SET tries = tries + 1, last_error = $2, next_try_at = clock_timestamp() + make_interval(secs => $3)
WHERE delivery_id = $1

-- name: waiting
SELECT count(*) FROM (SELECT 1 FROM bus_deliveries WHERE consumer_group = $1 LIMIT $2) AS counted
