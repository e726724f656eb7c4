-- A device's name has its prefix, so that no truck can be called like an operator.
-- name: principal
SELECT 'admin' AS role, name, NULL AS device_id FROM api_tokens
WHERE token_sha256 = $1 AND revoked_at IS NULL
UNION ALL
SELECT 'device', 'device:' || device_id, device_id FROM device_credentials WHERE token_sha256 = $1
LIMIT 1

-- name: api_token
SELECT revoked_at IS NOT NULL AS revoked FROM api_tokens WHERE token_sha256 = $1

-- name: revoke_other_tokens
UPDATE api_tokens SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL AND token_sha256 <> $2
RETURNING token_sha256

-- name: add_api_token
INSERT INTO api_tokens (token_id, name, role, token_sha256) VALUES ($1, $2, 'admin', $3)
ON CONFLICT (token_sha256) DO NOTHING

-- The row lock makes one of several requests for the same device the last.
-- name: lock_device
SELECT device_id FROM devices WHERE device_id = $1 FOR NO KEY UPDATE

-- name: drop_open_enrolment_tokens
DELETE FROM enrolment_tokens WHERE device_id = $1 AND used_at IS NULL

-- name: add_enrolment_token
INSERT INTO enrolment_tokens (token_sha256, device_id, expires_at)
VALUES ($1, $2, now() + make_interval(secs => $3))
RETURNING expires_at

-- name: device_of_enrolment_token
SELECT device_id FROM enrolment_tokens WHERE token_sha256 = $1

-- name: enrolment_token
SELECT used_at IS NOT NULL AS used, expires_at <= now() AS expired, key_sha256
FROM enrolment_tokens WHERE token_sha256 = $1

-- A used token stays until the next one is used: its truck may have lost the answer.
-- name: use_enrolment_token
WITH older AS (DELETE FROM enrolment_tokens WHERE device_id = $2 AND token_sha256 <> $1)
UPDATE enrolment_tokens SET used_at = now(), key_sha256 = $3 WHERE token_sha256 = $1

-- name: drop_enrolment_tokens
DELETE FROM enrolment_tokens WHERE device_id = $1

-- name: credential
SELECT token_sha256, mqtt_bcrypt FROM device_credentials WHERE device_id = $1

-- name: put_credential
INSERT INTO device_credentials (device_id, token_sha256, mqtt_bcrypt) VALUES ($1, $2, $3)
ON CONFLICT (device_id) DO UPDATE
SET token_sha256 = excluded.token_sha256, mqtt_bcrypt = excluded.mqtt_bcrypt, issued_at = now()

-- name: drop_credential
DELETE FROM device_credentials WHERE device_id = $1 RETURNING token_sha256

-- name: accounts
SELECT device_id, mqtt_bcrypt FROM device_credentials
WHERE device_id > $1 ORDER BY device_id LIMIT $2

-- An account for each certificate that may be shown: its name is the certificate's. By (device, serial).
-- name: certificate_accounts
SELECT c.device_id, c.serial, d.mqtt_bcrypt
FROM device_certificates c JOIN device_credentials d USING (device_id)
WHERE c.state = 'live' AND (c.device_id, c.serial) > ($1, $2)
ORDER BY c.device_id, c.serial LIMIT $3

-- name: add_certificate
INSERT INTO device_certificates (serial, device_id, key_sha256, issued_for, not_before, not_after, pem)
VALUES ($1, $2, $3, $4, $5, $6, $7)

-- name: certificates
SELECT serial, device_id, key_sha256, state, issued_for, not_before, not_after, issued_at, ended_at, pem
FROM device_certificates WHERE device_id = $1 ORDER BY issued_at DESC, serial LIMIT $2

-- name: end_certificates
UPDATE device_certificates SET state = $2, ended_at = clock_timestamp()
WHERE device_id = $1 AND state = 'live' AND serial <> ALL($3::text[])
RETURNING serial

-- Also those that were replaced: a revoked truck's old keys open nothing either.
-- name: revoke_certificates
UPDATE device_certificates SET state = 'revoked', ended_at = clock_timestamp()
WHERE device_id = $1 AND state <> 'revoked'
RETURNING serial

-- name: issued_since
SELECT count(*) FROM device_certificates
WHERE device_id = $1 AND issued_for <> 'enrolment' AND issued_at > now() - make_interval(secs => $2)

-- name: key_of_another
SELECT EXISTS (SELECT FROM device_certificates WHERE key_sha256 = $2 AND device_id <> $1)

-- name: clean_certificates
DELETE FROM device_certificates WHERE device_id = $1 AND state <> 'live' AND serial NOT IN (
    SELECT serial FROM device_certificates WHERE device_id = $1 ORDER BY issued_at DESC, serial LIMIT $2)

-- name: drop_old_key
DELETE FROM idempotency_keys
WHERE principal = $1 AND key = $2 AND created_at < now() - make_interval(secs => $3)

-- A few old ones with each new one: as fast as they come, they go. Locked ones are somebody else's.
-- name: clean_keys
DELETE FROM idempotency_keys WHERE (principal, key) IN (
    SELECT principal, key FROM idempotency_keys
    WHERE created_at < now() - make_interval(secs => $1)
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)

-- The row goes in before the act: the same key at the same time waits here for this transaction's end.
-- name: reserve_key
INSERT INTO idempotency_keys (principal, key, request_sha256, status, body)
VALUES ($1, $2, $3, 0, '{}'::jsonb)
ON CONFLICT (principal, key) DO NOTHING
RETURNING true

-- name: get_key
SELECT request_sha256, status, headers, body FROM idempotency_keys WHERE principal = $1 AND key = $2

-- name: keep_answer
UPDATE idempotency_keys SET status = $3, headers = $4::jsonb, body = $5::jsonb
WHERE principal = $1 AND key = $2
