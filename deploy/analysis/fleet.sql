-- Which engines of a fleet collapse, and what that costs. Reads the view `records`; DuckDB, Spark and any SQL with structs.
-- Rates are tokens / time, never means of rates. Canaries are left out. tokens_lost: against the engine's own 90th percentile.
WITH answers AS (
    SELECT
        host,
        observation.backend AS backend,
        observation.completion_tokens - 1 AS tokens,
        (observation.completion_tokens - 1) / observation.decode_tokens_per_second AS seconds,
        observation.decode_tokens_per_second AS rate,
        observation.completion_tokens AS counted_tokens,
        observation.verify_steps AS steps
    FROM records
    WHERE type = 'response'
      AND NOT observation.canary
      AND observation.completion_tokens > 1
      AND observation.decode_tokens_per_second > 0
),
best AS (
    SELECT host, backend, percentile_cont(0.9) WITHIN GROUP (ORDER BY rate) AS rate
    FROM answers
    GROUP BY host, backend
),
collapses AS (
    SELECT host, backend, count(*) AS number
    FROM records
    WHERE type = 'event' AND kind = 'phase' AND fields.phase = 'collapsed'
    GROUP BY host, backend
)
SELECT
    answers.host,
    answers.backend,
    count(*) AS answers,
    sum(answers.tokens) / sum(answers.seconds) AS tokens_per_second,
    max(best.rate) AS best_tokens_per_second,
    sum(CASE WHEN answers.steps > 0 THEN answers.counted_tokens END) * 1.0 / sum(answers.steps) AS acceptance_length,
    coalesce(max(collapses.number), 0) AS collapses,
    sum(CASE WHEN answers.rate < best.rate / 2 THEN answers.seconds ELSE 0 END) / sum(answers.seconds) AS slow_time_share,
    sum(CASE WHEN answers.rate < best.rate THEN answers.seconds * best.rate - answers.tokens ELSE 0 END) AS tokens_lost
FROM answers
JOIN best ON best.host = answers.host AND best.backend = answers.backend
LEFT JOIN collapses ON collapses.host = answers.host AND collapses.backend = answers.backend
GROUP BY answers.host, answers.backend
ORDER BY tokens_lost DESC
