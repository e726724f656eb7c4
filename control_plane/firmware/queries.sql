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
