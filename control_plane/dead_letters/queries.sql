-- A repeat of a letter adds no row; one that was replayed and came back is open again. A device's
-- open letters are bounded ($9), so that one mad truck can't fill the disk.
-- name: add
INSERT INTO dead_letters (dead_letter_id, source, device_id, job_id, message_id, reason, raw, reference)
SELECT $1, $2, $3, $4, $5, $6, $7, $8::jsonb
WHERE $3::text IS NULL
   OR (SELECT count(*) FROM dead_letters WHERE device_id = $3 AND resolved_at IS NULL) < $9
ON CONFLICT (source, device_id, message_id) DO UPDATE
SET reason = excluded.reason, raw = excluded.raw, reference = excluded.reference,
    created_at = now(), resolved_at = NULL, resolution = NULL, resolved_by = NULL
WHERE dead_letters.resolution = 'replayed'
RETURNING dead_letter_id

-- name: get
SELECT dead_letter_id, source, device_id, job_id, message_id, reason, raw, reference, created_at,
       resolved_at, resolution, resolved_by
FROM dead_letters WHERE dead_letter_id = $1

-- name: lock
SELECT dead_letter_id, source, device_id, job_id, message_id, reason, raw, reference, created_at,
       resolved_at, resolution, resolved_by
FROM dead_letters WHERE dead_letter_id = $1 FOR UPDATE

-- name: page
SELECT dead_letter_id, source, device_id, job_id, message_id, reason, ''::bytea AS raw, reference, created_at,
       resolved_at, resolution, resolved_by
FROM dead_letters
WHERE ($1::text IS NULL OR source = $1)
  AND ($2::text IS NULL OR device_id = $2)
  AND ($3::boolean OR resolved_at IS NULL)
  AND ($4::timestamptz IS NULL OR (created_at, dead_letter_id) < ($4, $5))
ORDER BY created_at DESC, dead_letter_id DESC
LIMIT $6

-- name: resolve
UPDATE dead_letters SET resolved_at = now(), resolution = $2, resolved_by = $3 WHERE dead_letter_id = $1
