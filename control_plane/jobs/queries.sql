-- name: insert_job
INSERT INTO jobs (job_id, device_id, state, scheduled_at, created_by, release_path)
VALUES ($1, $2, 'scheduled', coalesce($3, now()), $4, $5)
RETURNING *

-- name: insert_target
INSERT INTO job_targets (job_id, component, firmware_id, kind, version, sha256, length)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- name: live_job_of
SELECT job_id FROM jobs
WHERE device_id = $1 AND state NOT IN ('done', 'error', 'cancelled', 'abandoned')

-- name: get
SELECT * FROM jobs WHERE job_id = $1

-- name: lock
SELECT * FROM jobs WHERE job_id = ANY($1::text[]) ORDER BY job_id FOR UPDATE

-- name: targets
SELECT * FROM job_targets WHERE job_id = ANY($1::text[]) ORDER BY job_id, component

-- name: page
SELECT * FROM jobs
WHERE ($1::text IS NULL OR device_id = $1)
  AND ($2::text IS NULL OR state = $2)
  AND ($3::timestamptz IS NULL OR (created_at, job_id) < ($3, $4))
ORDER BY created_at DESC, job_id DESC
LIMIT $5

-- name: history
SELECT attempt, version, from_state, to_state, cause, applied, status, step, progress, reason, causes, error,
       message_id, store_no, seq, device_at, received_at
FROM job_history WHERE job_id = $1 ORDER BY history_id DESC LIMIT $2

-- name: history_length
SELECT count(*) FROM job_history WHERE job_id = $1

-- name: add_history
INSERT INTO job_history (job_id, attempt, version, from_state, to_state, cause, applied, status, step,
    progress, reason, error, message_id, store_no, seq, device_at, causes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::jsonb, $13, $14, $15, $16, $17::jsonb)

-- name: update
UPDATE jobs SET state = $2, version = $3, attempt = $4, revision = $5, command_kind = $6, step = $7,
    progress = $8, reason = $9, error = $10::jsonb, merged_attempt = $11, merged_store_no = $12,
    merged_seq = $13, merged_message_id = $14, causes = $15::jsonb, updated_at = now(),
    dispatched_at = CASE WHEN $2 = 'dispatched' THEN coalesce(dispatched_at, now()) ELSE dispatched_at END,
    finished_at = CASE WHEN $2 IN ('done', 'error', 'cancelled', 'abandoned')
        THEN coalesce(finished_at, now()) END
WHERE job_id = $1
RETURNING *

-- name: set_read_back
UPDATE job_targets SET read_back_version = $3, read_back_sha256 = $4 WHERE job_id = $1 AND component = $2

-- name: clear_read_back
UPDATE job_targets SET read_back_version = NULL, read_back_sha256 = NULL WHERE job_id = $1

-- name: lock_due
SELECT * FROM jobs WHERE state = 'scheduled' AND scheduled_at <= clock_timestamp()
ORDER BY scheduled_at LIMIT $1 FOR UPDATE SKIP LOCKED

-- name: next_due_s
SELECT greatest(0, extract(epoch FROM scheduled_at - clock_timestamp()))::float8
FROM jobs WHERE state = 'scheduled' ORDER BY scheduled_at LIMIT 1

-- name: lock_uncommanded
SELECT * FROM jobs
WHERE commanded_revision < revision AND state NOT IN ('scheduled', 'done', 'error', 'cancelled', 'abandoned')
  AND ($2::text[] IS NULL OR job_id = ANY($2))
ORDER BY job_id LIMIT $1 FOR UPDATE SKIP LOCKED

-- name: commanded
UPDATE jobs SET commanded_revision = revision WHERE job_id = ANY($1::text[])

-- Insert-only, with no lock on the job: a status seen for the first time is a row that goes in.
-- name: add_seen
INSERT INTO status_dedup (job_id, message_id, status)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
ON CONFLICT DO NOTHING
RETURNING job_id, message_id, status
