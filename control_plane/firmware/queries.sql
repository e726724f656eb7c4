-- name: insert
INSERT INTO firmwares (firmware_id, kind, version, hardware, release_counter, length, sha256, document,
    state, notes, created_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'published', $9, $10)
ON CONFLICT (kind, version) DO NOTHING
RETURNING *

-- name: get
SELECT * FROM firmwares WHERE firmware_id = $1

-- name: lock
SELECT * FROM firmwares WHERE firmware_id = $1 FOR UPDATE

-- name: get_version
SELECT * FROM firmwares WHERE kind = $1 AND version = $2

-- name: lock_version
SELECT * FROM firmwares WHERE kind = $1 AND version = $2 FOR UPDATE

-- A withdrawal waits until whoever relies on the firmware has committed.
-- name: share_version
SELECT * FROM firmwares WHERE kind = $1 AND version = $2 FOR SHARE

-- name: of_ids
SELECT * FROM firmwares WHERE firmware_id = ANY($1::text[])

-- name: page
SELECT firmware_id, kind, version, hardware, release_counter, length, sha256, ''::bytea AS document, state,
       notes, created_by, published_at, withdrawn_at, withdrawn_why
FROM firmwares
WHERE ($1::text IS NULL OR kind = $1)
  AND ($2::timestamptz IS NULL OR (published_at, firmware_id) < ($2, $3))
ORDER BY published_at DESC, firmware_id DESC
LIMIT $4

-- name: replace_document
UPDATE firmwares SET document = $2 WHERE firmware_id = $1 RETURNING *

-- name: withdraw
UPDATE firmwares SET state = 'withdrawn', withdrawn_at = now(), withdrawn_why = $2
WHERE firmware_id = $1 RETURNING *

-- name: put_delta
INSERT INTO firmware_deltas (base_sha256, sha256, delta_sha256, length, image_length, format, taken_by)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (sha256, base_sha256) DO UPDATE
SET delta_sha256 = excluded.delta_sha256, length = excluded.length, format = excluded.format,
    taken_by = excluded.taken_by, taken_at = excluded.taken_at
RETURNING *

-- name: deltas_to
SELECT * FROM firmware_deltas WHERE sha256 = $1 ORDER BY base_sha256 LIMIT 100

-- name: deltas_between
SELECT d.* FROM firmware_deltas d
JOIN unnest($1::text[], $2::text[]) AS wanted (base_sha256, sha256)
    ON d.base_sha256 = wanted.base_sha256 AND d.sha256 = wanted.sha256

-- name: forget_deltas
DELETE FROM firmware_deltas WHERE sha256 = $1
    AND NOT EXISTS (SELECT FROM firmwares WHERE sha256 = $1 AND state = 'published')
RETURNING delta_sha256

-- Whoever withdraws it meanwhile waits, and then forgets the delta that is put here.
-- name: only_withdrawn
SELECT coalesce(bool_and(state = 'withdrawn'), false) FROM
    (SELECT state FROM firmwares WHERE sha256 = $1 FOR SHARE) AS same_bytes

-- An image may be anything that was signed, a delta too.
-- name: files_in_use
SELECT delta_sha256 AS sha256 FROM firmware_deltas WHERE delta_sha256 = ANY($1::text[])
UNION SELECT sha256 FROM firmwares WHERE sha256 = ANY($1::text[])
