-- One row a live job: a newer revision replaces what an older one said.
-- name: put
INSERT INTO commands (job_id, device_id, command_id, attempt, revision, kind)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (job_id) DO UPDATE
SET command_id = excluded.command_id, attempt = excluded.attempt, revision = excluded.revision,
    kind = excluded.kind, created_at = now(), tries = 0, next_try_at = now(), last_sent_at = NULL,
    answered_at = NULL
WHERE commands.revision < excluded.revision

-- name: due
SELECT job_id FROM commands
WHERE answered_at IS NULL AND next_try_at <= clock_timestamp()
ORDER BY next_try_at LIMIT $1

-- name: lock_due
SELECT job_id, device_id, command_id, attempt, revision, kind, tries FROM commands
WHERE job_id = ANY($1::text[]) AND answered_at IS NULL AND next_try_at <= clock_timestamp()
ORDER BY job_id FOR UPDATE

-- name: next_due_s
SELECT greatest(0, extract(epoch FROM min(next_try_at) - clock_timestamp()))::float8 FROM commands
WHERE answered_at IS NULL

-- name: sent
UPDATE commands SET tries = tries + 1, last_sent_at = clock_timestamp(),
    next_try_at = clock_timestamp() + make_interval(secs => $2)
WHERE job_id = $1

-- name: postpone
UPDATE commands SET next_try_at = clock_timestamp() + make_interval(secs => $2)
WHERE job_id = ANY($1::text[])

-- Only if nothing happened to it since: a newer revision, an answer or a hello count more.
-- name: unsent
UPDATE commands SET tries = greatest(0, tries - 1), next_try_at = clock_timestamp() + make_interval(secs => $2)
WHERE command_id = ANY($1::text[]) AND answered_at IS NULL

-- name: remove
DELETE FROM commands WHERE job_id = ANY($1::text[])

-- The truck has the newest revision: nothing has to be sent.
-- name: known
UPDATE commands SET answered_at = coalesce(answered_at, clock_timestamp())
WHERE device_id = $1 AND job_id = ANY($2::text[]) AND revision <= ($3::bigint[])[array_position($2::text[], job_id)]

-- It lacks it: at once, and as a whole install when the truck has never heard of the job.
-- name: unknown
UPDATE commands SET answered_at = NULL, tries = 0, next_try_at = clock_timestamp(),
    kind = CASE WHEN kind = 'url' AND NOT job_id = ANY($2::text[]) THEN 'install' ELSE kind END
WHERE device_id = $1
  AND NOT (job_id = ANY($2::text[]) AND revision <= ($3::bigint[])[array_position($2::text[], job_id)])

-- name: answered
UPDATE commands SET answered_at = clock_timestamp()
WHERE job_id = $1 AND kind = ANY($2::text[]) AND answered_at IS NULL
