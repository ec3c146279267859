-- The view `records` over sealed sessions of a fleet, for DuckDB. The folders are host=NAME/*.jsonl.zst, here or in object
-- storage: SET VARIABLE sessions = 's3://bucket/specbreaker/host=*/*.jsonl.zst' (after INSTALL httpfs and CREATE SECRET).
CREATE OR REPLACE VIEW records AS
SELECT *
FROM read_json(
    getvariable('sessions'),
    format = 'newline_delimited',
    hive_partitioning = true,
    columns = {
        type: 'VARCHAR',
        kind: 'VARCHAR',
        backend: 'VARCHAR',
        fields: 'STRUCT(phase VARCHAR, cause VARCHAR)',
        observation: 'STRUCT(backend VARCHAR, canary BOOLEAN, started_unix DOUBLE, completion_tokens BIGINT, verify_steps BIGINT, decode_tokens_per_second DOUBLE)'
    }
);
