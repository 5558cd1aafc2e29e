"""Lead score: what its rules ask for, ideal profiles, and the view of the weights in force."""

from alembic import op

revision = "0004"
down_revision = "0003"

UTC_GLOB = (
    "[0-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]."
    "[0-9][0-9][0-9][0-9][0-9][0-9]Z"
)
COMPONENTS = ("data_quality", "authority", "company_fit", "timing")

# Table, column, type on SQLite, its check there, type on PostgreSQL.
COLUMNS = (
    ("leads", "email_verified", "BOOLEAN", "is_boolean", "BOOLEAN"),
    ("leads", "personal_email", "TEXT", None, "TEXT"),
    ("leads", "phone_verified", "BOOLEAN", "is_boolean", "BOOLEAN"),
    ("leads", "role_started_at", "VARCHAR(27)", "is_utc", "TIMESTAMP WITH TIME ZONE"),
    ("leads", "funded_at", "VARCHAR(27)", "is_utc", "TIMESTAMP WITH TIME ZONE"),
    ("leads", "is_competitor", "BOOLEAN", "is_boolean", "BOOLEAN"),
    ("clients", "ideal_profile", "TEXT", "is_json", "JSONB"),
)
CHECKS = {
    "is_boolean": "{0} IN (0, 1)",
    "is_utc": "{0} GLOB '" + UTC_GLOB + "'",
    "is_json": "{0} IS NULL OR json_valid({0})",
}

# Columns whose change by a foreign writer gives the row a new number, with those added here.
TRACKED = {
    "clients": "id, name, timezone, subscription_status, is_paused, ideal_profile, pool_opt_in, "
    "created_at, updated_at, deleted_at",
    "leads": "id, client_id, first_name, last_name, email, email_verified, personal_email, phone, "
    "phone_verified, linkedin_url, title, company_name, industry, employee_count, country, "
    "timezone, source, is_new_role, role_started_at, is_hiring, recently_funded, funded_at, "
    "is_competitor, status, als_score, als_tier, als_components, als_weights_used, scored_at, "
    "created_at, converted_at, updated_at, deleted_at",
}
SAME_ROW = {"clients": "id = NEW.id", "leads": "client_id = NEW.client_id AND id = NEW.id"}


def upgrade() -> None:
    bind = op.get_bind()
    on_sqlite = bind.dialect.name == "sqlite"
    for statement in [
        *(_add_column(on_sqlite, *column) for column in COLUMNS),
        *(_retrack_sqlite() if on_sqlite else _retrack_postgresql()),
        _view(SQLITE_NUMBER, SQLITE_SOURCE, SQLITE_NOW)
        if on_sqlite
        else _view(POSTGRESQL_NUMBER, POSTGRESQL_SOURCE, "CURRENT_TIMESTAMP"),
    ]:
        bind.exec_driver_sql(statement)


def _add_column(on_sqlite, table, name, sqlite_type, check, postgresql_type):
    if not on_sqlite:
        return f"ALTER TABLE {table} ADD COLUMN {name} {postgresql_type}"
    added = f"ALTER TABLE {table} ADD COLUMN {name} {sqlite_type}"
    if check is None:
        return added
    # On a line of its own: SQLite keeps the text, and who reads checks reads it line by line.
    return f"{added}\n\tCONSTRAINT {table}_{name}_{check}_check CHECK ({CHECKS[check].format(name)})\n"


def _retrack_sqlite():
    for table, columns in TRACKED.items():
        yield f"DROP TRIGGER {table}_number_update"
        yield f"""CREATE TRIGGER {table}_number_update AFTER UPDATE OF {columns} ON {table}
        WHEN NEW.change_id IS OLD.change_id BEGIN
        UPDATE change_counter SET value = value + 1;
        UPDATE {table} SET change_id = (SELECT value FROM change_counter) WHERE {SAME_ROW[table]};
        END"""


def _retrack_postgresql():
    for table, columns in TRACKED.items():
        yield f"DROP TRIGGER {table}_number_update ON {table}"
        yield f"""CREATE TRIGGER {table}_number_update BEFORE UPDATE OF {columns} ON {table}
        FOR EACH ROW
        WHEN (NEW.change_id IS NOT DISTINCT FROM OLD.change_id AND OLD.* IS DISTINCT FROM NEW.*)
        EXECUTE FUNCTION number_change()"""


# A view cannot take a parameter for the time, so it reads the database's clock. Of members that
# stand twice in an object the last counts, as for every other reader; json_extract takes the first.
SQLITE_NOW = "strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000Z'"
SQLITE_NUMBER = (
    "(SELECT CASE WHEN m.type IN ('integer', 'real') THEN CAST(m.atom AS REAL) END"
    " FROM json_each({0}) m WHERE m.key = '{1}' ORDER BY m.id DESC LIMIT 1)"
)
SQLITE_SOURCE = """
    SELECT c.id AS client_id, p.valid_until,
        json_type(p.patterns, '$.score_evaluation.recommended') = 'true' AS is_recommended,
        CASE WHEN json_type(p.patterns, '$.recommended_weights') = 'object'
            THEN json_extract(p.patterns, '$.recommended_weights') END AS of_pattern,
        CASE WHEN json_type(c.als_learned_weights) = 'object'
            THEN c.als_learned_weights END AS of_client
    FROM clients c
    LEFT JOIN conversion_patterns p ON p.client_id = c.id AND p.pattern_type = 'who'"""

# A number that fits no double would end the query for every client: look at its size first.
POSTGRESQL_NUMBER = (
    "CASE WHEN jsonb_typeof({0} -> '{1}') = 'number'"
    " THEN CASE WHEN ({0} ->> '{1}')::numeric BETWEEN 0.01 AND 1"
    " THEN ({0} ->> '{1}')::double precision END END"
)
POSTGRESQL_SOURCE = """
    SELECT c.id AS client_id, p.valid_until,
        p.patterns -> 'score_evaluation' -> 'recommended' = 'true'::jsonb AS is_recommended,
        p.patterns -> 'recommended_weights' AS of_pattern,
        c.als_learned_weights AS of_client
    FROM clients c
    LEFT JOIN conversion_patterns p ON p.client_id = c.id AND p.pattern_type = 'who'"""

DEFAULTS = {"data_quality": 0.20, "authority": 0.25, "company_fit": 0.25, "timing": 0.15}


def _view(number, source, now):
    """One row per client: the four weights in force now, and where they come from."""
    columns = [f"{prefix}_{name}" for prefix in ("pattern", "client") for name in COMPONENTS]
    numbers = [
        f"{number.format(document, name)} AS {prefix}_{name}"
        for prefix, document in (("pattern", "s.of_pattern"), ("client", "s.of_client"))
        for name in COMPONENTS
    ]
    weights = [
        f"CASE source WHEN 'pattern' THEN pattern_{name} WHEN 'client' THEN client_{name}"
        f" ELSE {DEFAULTS[name]} END AS {name}"
        for name in COMPONENTS
    ]
    return f"""CREATE VIEW score_weights_in_force AS
SELECT client_id, {", ".join(weights)}, source,
    CASE source WHEN 'pattern' THEN valid_until END AS valid_until
FROM (
    SELECT client_id, valid_until, {", ".join(columns)},
        CASE
            WHEN is_recommended AND valid_until > {now} AND {_usable("pattern")} THEN 'pattern'
            WHEN {_usable("client")} THEN 'client'
            ELSE 'default'
        END AS source
    FROM (
        SELECT s.client_id, s.valid_until, s.is_recommended, {", ".join(numbers)}
        FROM ({source}) s
    ) n
) w"""


def _usable(prefix):
    names = [f"{prefix}_{name}" for name in COMPONENTS]
    bounds = " AND ".join(f"{name} BETWEEN 0.05 AND 0.5" for name in names)
    return f"{bounds} AND abs({' + '.join(names)} - 0.85) <= 0.000001"
