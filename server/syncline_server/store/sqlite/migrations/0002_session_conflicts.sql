-- What a session's commit does to records that were changed since it was opened. Sessions opened before overwrite.
ALTER TABLE session ADD COLUMN conflict_policy INTEGER NOT NULL DEFAULT 1;
ALTER TABLE session ADD COLUMN base_revision INTEGER NOT NULL DEFAULT 0;

-- Records that the first answer said were left as they are.
ALTER TABLE request ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
