-- name: add_vehicle
INSERT INTO director_vehicles (device_id) VALUES ($1) ON CONFLICT (device_id) DO NOTHING

-- name: lock_vehicle
SELECT * FROM director_vehicles WHERE device_id = $1 FOR UPDATE

-- name: get_vehicle
SELECT * FROM director_vehicles WHERE device_id = $1

-- name: register_vehicle
UPDATE director_vehicles SET primary_serial = $2, gateway_key = $3, revision = revision + 1
WHERE device_id = $1

-- Where no ECUs are registered yet, the first registration still needs no version.
-- name: set_gateway_key
UPDATE director_vehicles SET gateway_key = $2, revision = CASE WHEN revision > 0 THEN revision + 1 ELSE 0 END
WHERE device_id = $1

-- Never lower, whoever calls it with what.
-- name: raise_version
UPDATE director_vehicles SET version = greatest(version, $2) WHERE device_id = $1 RETURNING version

-- name: set_metadata_versions
UPDATE director_vehicles SET metadata_versions = $2::jsonb WHERE device_id = $1

-- name: next_version
UPDATE director_vehicles SET version = version + 1 WHERE device_id = $1 RETURNING version

-- name: manifest_taken
UPDATE director_vehicles SET store_id = $2, seq = $3, past_stores = $4, said_at = $5, manifest_sha256 = $6,
    manifest_at = clock_timestamp()
WHERE device_id = $1

-- name: ecus
SELECT serial, kind, hardware, public_key, counter, settled_sha256, settled_at
FROM ecus WHERE device_id = $1 ORDER BY serial

-- An ECU that stays the same part keeps the counter that it reported; what is expected of it begins anew.
-- name: put_ecu
INSERT INTO ecus (device_id, serial, kind, hardware, public_key) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (device_id, serial) DO UPDATE
SET kind = excluded.kind, hardware = excluded.hardware, public_key = excluded.public_key,
    counter = CASE WHEN ecus.kind = excluded.kind THEN ecus.counter ELSE 0 END,
    settled_sha256 = NULL, settled_at = NULL

-- name: drop_ecus
DELETE FROM ecus WHERE device_id = $1 AND serial <> ALL($2::text[])

-- name: ecu_told
UPDATE ecus SET counter = greatest(counter, $3) WHERE device_id = $1 AND serial = $2

-- name: ecu_settled
UPDATE ecus SET settled_sha256 = $3, settled_at = clock_timestamp() WHERE device_id = $1 AND serial = $2

-- name: newest_reports
SELECT DISTINCT ON (serial) * FROM ecu_reports WHERE device_id = $1 ORDER BY serial, report_id DESC

-- name: reports
SELECT * FROM ecu_reports WHERE device_id = $1 AND serial = $2 ORDER BY report_id DESC LIMIT $3

-- name: report_again
UPDATE ecu_reports SET last_seen_at = clock_timestamp() WHERE report_id = $1

-- name: add_report
INSERT INTO ecu_reports (device_id, serial, kind, hardware, believed, filename, length, sha256,
    release_counter, said_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- Unregistered serials are a truck's own words: the whole truck is bounded, not each serial alone.
-- name: trim_reports
DELETE FROM ecu_reports WHERE report_id IN (
    SELECT report_id FROM ecu_reports WHERE device_id = $1 ORDER BY report_id DESC OFFSET $2)

-- name: selection
SELECT release_path, job_id, chosen_by, chosen_at FROM director_selections WHERE device_id = $1

-- name: select
INSERT INTO director_selections (device_id, release_path, job_id, chosen_by) VALUES ($1, $2, $3, $4)
ON CONFLICT (device_id) DO UPDATE
SET release_path = excluded.release_path, job_id = excluded.job_id, chosen_by = excluded.chosen_by,
    chosen_at = clock_timestamp()
RETURNING release_path, job_id, chosen_by, chosen_at

-- name: newest_signed
SELECT version, fingerprint, release_path, why, targets, snapshot, "timestamp", renew_at
FROM director_metadata WHERE device_id = $1 ORDER BY version DESC LIMIT 1

-- name: signed_version
SELECT targets, snapshot FROM director_metadata WHERE device_id = $1 AND version = $2

-- name: add_signed
INSERT INTO director_metadata (device_id, version, fingerprint, release_path, why, targets, snapshot,
    "timestamp", renew_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: trim_signed
DELETE FROM director_metadata WHERE device_id = $1 AND version NOT IN (
    SELECT version FROM director_metadata WHERE device_id = $1 ORDER BY version DESC LIMIT $2)

-- name: image_repository
SELECT trusted, root, snapshot, "timestamp", good_until, taken_by, taken_at FROM image_repository

-- Serialises takings: of two at once the second judges by what the first has left.
-- name: lock_image_repository
SELECT pg_advisory_xact_lock(20261125)

-- name: put_image_repository
INSERT INTO image_repository (trusted, root, snapshot, "timestamp", good_until, taken_by)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (only_one) DO UPDATE
SET trusted = excluded.trusted, root = excluded.root, snapshot = excluded.snapshot,
    "timestamp" = excluded."timestamp", good_until = excluded.good_until, taken_by = excluded.taken_by,
    taken_at = now()

-- name: image_metadata
SELECT sha256, raw FROM image_metadata WHERE name = $1

-- name: image_metadata_hashes
SELECT name, sha256 FROM image_metadata WHERE name = ANY($1::text[])

-- name: put_image_metadata
INSERT INTO image_metadata (name, sha256, raw) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, raw = excluded.raw, taken_at = now()

-- name: clear_image_targets
DELETE FROM image_targets

-- name: add_image_target
INSERT INTO image_targets (path, sha256, length, release, document) VALUES ($1, $2, $3, $4, $5)

-- What is signed now, and what was and is not any more.
-- name: note_releases
INSERT INTO image_releases (path) SELECT unnest($1::text[])
ON CONFLICT (path) DO UPDATE SET withdrawn_at = NULL WHERE image_releases.withdrawn_at IS NOT NULL

-- name: note_withdrawn
UPDATE image_releases SET withdrawn_at = now() WHERE withdrawn_at IS NULL AND path <> ALL($1::text[])

-- name: known_releases
SELECT path, withdrawn_at IS NULL AS signed FROM image_releases ORDER BY path

-- name: image_target
SELECT path, sha256, length, release, document FROM image_targets WHERE path = $1

-- name: image_targets
SELECT path, sha256, length, release, document FROM image_targets WHERE path = ANY($1::text[])

-- name: image_hashes
SELECT DISTINCT sha256 FROM image_targets WHERE release IS NULL

-- name: releases
SELECT path, release FROM image_targets WHERE release IS NOT NULL ORDER BY path

-- name: add_alarm
INSERT INTO director_alarms (alarm_id, device_id, alarm, serial, about, detail)
SELECT $1, $2, $3, $4, $5, $6
WHERE EXISTS (SELECT FROM director_alarms
              WHERE device_id = $2 AND alarm = $3 AND serial = $4 AND about = $5 AND acknowledged_at IS NULL)
   OR (SELECT count(*) FROM director_alarms WHERE device_id = $2 AND acknowledged_at IS NULL) < $7
ON CONFLICT (device_id, alarm, serial, about) WHERE acknowledged_at IS NULL DO UPDATE
SET count = director_alarms.count + 1, last_seen_at = clock_timestamp(), detail = excluded.detail
RETURNING count

-- name: alarms
SELECT * FROM director_alarms
WHERE ($1::text IS NULL OR device_id = $1)
  AND ($2::text IS NULL OR alarm = $2)
  AND ($3::boolean OR acknowledged_at IS NULL)
  AND ($4::timestamptz IS NULL OR (first_seen_at, alarm_id) < ($4, $5))
ORDER BY first_seen_at DESC, alarm_id DESC
LIMIT $6

-- name: acknowledge
UPDATE director_alarms SET acknowledged_at = clock_timestamp(), acknowledged_by = $2
WHERE alarm_id = $1 AND acknowledged_at IS NULL
RETURNING *

-- name: alarm
SELECT * FROM director_alarms WHERE alarm_id = $1
