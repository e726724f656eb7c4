-- name: lock
SELECT l.* FROM local_installs l
JOIN unnest($1::text[], $2::text[]) AS wanted (device_id, job_id)
    ON l.device_id = wanted.device_id AND l.job_id = wanted.job_id
ORDER BY l.device_id, l.job_id FOR UPDATE OF l

-- The update changes nothing, but it locks and returns the row of a writer that was faster.
-- name: insert_or_lock
INSERT INTO local_installs (device_id, job_id, state, attempt, step, progress, reason, error, wanted, read_back,
    said_at, merged_store_no, merged_seq, merged_message_id, causes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9::jsonb, $10::jsonb, $11, $12, $13, $14, $15::jsonb)
ON CONFLICT (device_id, job_id) DO UPDATE SET device_id = excluded.device_id
RETURNING *, xmax = 0 AS is_new

-- name: update
UPDATE local_installs SET state = $3, attempt = $4, step = $5, progress = $6, reason = $7, error = $8::jsonb,
    wanted = $9::jsonb, read_back = $10::jsonb, said_at = $11, merged_store_no = $12, merged_seq = $13,
    merged_message_id = $14, causes = $15::jsonb, updated_at = now()
WHERE device_id = $1 AND job_id = $2

-- name: prune
WITH gone AS (
    DELETE FROM local_installs WHERE device_id = $1 AND job_id IN (
        SELECT job_id FROM local_installs WHERE device_id = $1
        ORDER BY first_seen_at DESC, job_id DESC OFFSET $2
    ) RETURNING 1
)
SELECT count(*) FROM gone

-- name: page
SELECT * FROM local_installs
WHERE ($1::text IS NULL OR device_id = $1)
  AND ($2::text IS NULL OR job_id = $2)
  AND ($3::text IS NULL OR state = $3)
  AND ($4::timestamptz IS NULL OR (first_seen_at, job_id) < ($4, $5))
ORDER BY first_seen_at DESC, job_id DESC
LIMIT $6
