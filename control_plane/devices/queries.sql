-- name: insert
INSERT INTO devices (device_id, name, site) VALUES ($1, $2, $3)
ON CONFLICT (device_id) DO NOTHING
RETURNING *

-- name: get
SELECT * FROM devices WHERE device_id = $1

-- name: lock
SELECT * FROM devices WHERE device_id = $1 FOR UPDATE

-- name: components
SELECT * FROM components WHERE device_id = ANY($1::text[]) ORDER BY device_id, component

-- name: page
SELECT * FROM devices
WHERE ($1::text IS NULL OR site = $1)
  AND ($2::boolean IS NULL OR online = $2)
  AND ($3::text IS NULL OR device_id > $3)
ORDER BY device_id
LIMIT $4

-- name: update
UPDATE devices SET name = $2, site = $3, version = version + 1, updated_at = now()
WHERE device_id = $1
RETURNING *

-- name: touch
UPDATE devices SET version = version + 1, updated_at = now() WHERE device_id = $1

-- name: put_component
INSERT INTO components (device_id, component, kind, hardware, installed_version, installed_sha256,
    reported_kind, reported_hardware, in_bootloader, reported_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (device_id, component) DO UPDATE
SET kind = excluded.kind, hardware = excluded.hardware, installed_version = excluded.installed_version,
    installed_sha256 = excluded.installed_sha256, reported_kind = excluded.reported_kind,
    reported_hardware = excluded.reported_hardware, in_bootloader = excluded.in_bootloader,
    reported_at = excluded.reported_at

-- name: drop_components
DELETE FROM components WHERE device_id = $1 AND component = ANY($2::text[])

-- An older hello (a replayed one) tells nothing of the present.
-- name: heard
UPDATE devices SET online = $2, agent_version = $3, features = $4, last_seen_at = $5
WHERE device_id = $1 AND (last_seen_at IS NULL OR last_seen_at <= $5)

-- name: online
SELECT device_id FROM devices WHERE device_id = ANY($1::text[]) AND online

-- name: installed
SELECT device_id, component, installed_sha256
FROM components JOIN devices USING (device_id)
WHERE device_id = ANY($1::text[]) AND $2 = ANY(features) AND installed_sha256 IS NOT NULL

-- name: lock_many
SELECT device_id FROM devices WHERE device_id = ANY($1::text[]) ORDER BY device_id FOR NO KEY UPDATE

-- name: stores
SELECT s.device_id, s.store_id, s.store_no
FROM device_stores s JOIN unnest($1::text[], $2::text[]) AS wanted (device_id, store_id)
    ON s.device_id = wanted.device_id AND s.store_id = wanted.store_id

-- The caller holds the device's lock, so the next number is nobody else's.
-- name: add_store
INSERT INTO device_stores (device_id, store_id, store_no)
SELECT $1, $2, count(*) + 1 FROM device_stores WHERE device_id = $1
HAVING count(*) < $3
ON CONFLICT (device_id, store_id) DO NOTHING
RETURNING store_no

-- name: newest_manifest
SELECT store_no, manifest_seq FROM device_stores
WHERE device_id = $1 AND manifest_seq >= 0 ORDER BY store_no DESC LIMIT 1

-- name: manifest_taken
UPDATE device_stores SET manifest_seq = $3 WHERE device_id = $1 AND store_no = $2
