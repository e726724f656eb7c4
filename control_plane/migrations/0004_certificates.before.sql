-- Client certificates of trucks, as the office's authority issued them.

-- owner: access -------------------------------------------------------------------------------
-- live: the broker takes it. replaced: a newer one has proved to be with the truck, or the truck was enrolled
-- anew. revoked: by an operator. issued_for: enrolment, renewal, or the first of a truck that had none.
CREATE TABLE device_certificates (
    serial     text PRIMARY KEY CHECK (serial ~ '^[0-9a-f]{1,40}$'),
    device_id  text NOT NULL REFERENCES devices ON DELETE CASCADE,
    key_sha256 text NOT NULL CHECK (key_sha256 ~ '^[0-9a-f]{64}$'),
    state      text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'replaced', 'revoked')),
    issued_for text NOT NULL CHECK (issued_for IN ('enrolment', 'renewal', 'first')),
    not_before timestamptz NOT NULL,
    not_after  timestamptz NOT NULL,
    issued_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    pem        text NOT NULL
);
CREATE INDEX device_certificates_of_device ON device_certificates (device_id, issued_at DESC);
CREATE INDEX device_certificates_live ON device_certificates (device_id, serial) WHERE state = 'live';
CREATE INDEX device_certificates_of_key ON device_certificates (key_sha256);

-- The key of the certificate that an enrolment token was used with; NULL: it asked for none.
ALTER TABLE enrolment_tokens ADD COLUMN key_sha256 text;
