-- name: add
INSERT INTO event_outbox (event_id, job_id, job_version, topic, key, event_type, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- A job's row is locked by whoever writes its events, so outbox_id grows with the job's version.
-- An event waits behind an earlier one of its job that is dead or not yet due.
-- name: next_batch
SELECT outbox_id, event_id, job_id, job_version, topic, key, event_type, payload, tries
FROM event_outbox AS o
WHERE sent_at IS NULL AND dead_at IS NULL AND next_try_at <= clock_timestamp()
  AND NOT EXISTS (
    SELECT 1 FROM event_outbox AS earlier
    WHERE earlier.job_id = o.job_id AND earlier.sent_at IS NULL
      AND (earlier.job_version, earlier.outbox_id) < (o.job_version, o.outbox_id)
      AND (earlier.dead_at IS NOT NULL OR earlier.next_try_at > clock_timestamp()))
ORDER BY outbox_id
LIMIT $1

-- name: mark_sent
UPDATE event_outbox SET sent_at = clock_timestamp(), tries = tries + 1, last_error = NULL
WHERE outbox_id = ANY($1::bigint[])

-- name: mark_refused
UPDATE event_outbox
SET tries = tries + 1, last_error = $2, next_try_at = clock_timestamp() + make_interval(secs => $3)
WHERE outbox_id = $1

-- name: mark_dead
UPDATE event_outbox SET tries = tries + 1, last_error = $2, dead_at = clock_timestamp()
WHERE outbox_id = $1 AND dead_at IS NULL
RETURNING outbox_id

-- name: replay
UPDATE event_outbox SET dead_at = NULL, tries = 0, next_try_at = clock_timestamp()
WHERE event_id = $1 AND dead_at IS NOT NULL
RETURNING outbox_id

-- name: drop
DELETE FROM event_outbox WHERE event_id = $1 AND dead_at IS NOT NULL
RETURNING outbox_id

-- name: pending
SELECT count(*) FROM event_outbox WHERE sent_at IS NULL

-- name: next_due_s
SELECT extract(epoch FROM min(next_try_at) - clock_timestamp())::float8 FROM event_outbox
WHERE sent_at IS NULL AND dead_at IS NULL AND next_try_at > clock_timestamp()

-- name: clean
DELETE FROM event_outbox WHERE outbox_id IN (
    SELECT outbox_id FROM event_outbox
    WHERE sent_at < clock_timestamp() - make_interval(secs => $1) ORDER BY sent_at LIMIT $2)

-- name: take_lease
INSERT INTO leases (name, slot, holder, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
ON CONFLICT (name, slot) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE leases.holder = excluded.holder OR leases.expires_at <= clock_timestamp()
RETURNING holder

-- name: drop_lease
DELETE FROM leases WHERE name = $1 AND slot = $2 AND holder = $3
