#!/usr/bin/env node
// Checks with node-postgres. Arguments: parts of the names of the checks to make, default all.

import { expectEqual, load, runChecks, schema, sessionCount, Skip, sqlstateOf, target, waitUntil } from './support.mjs'

const { Client, Pool } = load('pg')
const Cursor = load('pg-cursor')

// Queueing queries in the driver is deprecated, but applications do it.
process.noDeprecation = true

/** Runs the body with `count` sessions and closes them whatever happens. */
async function withClients(count, body, options = {}) {
  const clients = Array.from({ length: count }, () => new Client({ ...target, ...options }))
  for (const client of clients) client.on('error', () => {})
  try {
    for (let start = 0; start < count; start += 25) {
      await Promise.all(clients.slice(start, start + 25).map((client) => client.connect()))
    }
    return await body(...clients)
  } finally {
    await Promise.all(clients.map((client) => client.end().catch(() => {})))
  }
}

async function value(client, ...query) {
  return Object.values((await client.query(...query)).rows[0])[0]
}

// Simple queries and queries with parameters give the same rows.
async function simple_and_parameterised_queries() {
  await withClients(1, async (client) => {
    expectEqual(await value(client, 'SELECT 40 + 2 AS a'), 42)
    expectEqual(await value(client, 'SELECT $1::int + $2::int AS a', [40, 2]), 42)
    expectEqual((await client.query('SELECT generate_series(1, 5000)')).rowCount, 5000)
    expectEqual((await client.query('SELECT 1 AS a; SELECT 2 AS a')).map((result) => result.rows[0].a), [1, 2])
    expectEqual((await client.query('')).rows, [])
    expectEqual((await client.query({ text: 'SELECT 1 AS a, 2 AS b', rowMode: 'array' })).rows, [[1, 2]])
  })
}

// Values of many types arrive as they were sent.
async function types_round_trip() {
  await withClients(1, async (client) => {
    const when = new Date('2024-02-29T12:00:00Z')
    const row = (await client.query(
      'SELECT $1::int AS a, $2::text AS b, $3::bytea AS c, $4::timestamptz AS d, $5::jsonb AS e, $6::int[] AS f, $7::text AS g, $8::float8 AS h',
      [7, 'snow ☃', Buffer.from([0, 255]), when, { x: [1, null] }, [1, 2], null, 0.1],
    )).rows[0]
    expectEqual(row, { a: 7, b: 'snow ☃', c: Buffer.from([0, 255]), d: when, e: { x: [1, null] }, f: [1, 2], g: null, h: 0.1 })
    expectEqual(await value(client, { text: 'SELECT $1::int8', values: [9], binary: true }), '9')
  })
}

// Named statements, shared and own, run in random order over all sessions without an error or a wrong row.
async function named_prepared_statements_over_many_sessions() {
  await withClients(sessionCount, async (...clients) => {
    await Promise.all(clients.map(async (client, number) => {
      for (let turn = 0; turn < 15; turn++) {
        const pick = (turn * 7 + number * 3) % 8
        // Below 4 the text is the same everywhere; above, the same name means another text in each session.
        const base = pick < 4 ? pick : number * 10 + pick
        const row = await value(client, { name: `statement-${pick}`, text: `SELECT ${base} + $1::int AS a`, values: [turn] })
        expectEqual(row, base + turn, `session ${number}, statement ${pick}`)
      }
    }))
  })
}

// A named statement whose Parse fails leaves its name free and the session usable.
async function failed_parse_of_a_named_statement() {
  await withClients(1, async (client) => {
    expectEqual(await sqlstateOf(client.query({ name: 'n', text: 'SELEC 1' })), '42601')
    expectEqual(await value(client, { name: 'n', text: 'SELECT 5 AS a' }), 5)
  })
}

// After DDL a session gets at most one error (0A000) and works with a statement prepared anew.
async function ddl_changes_the_result_of_a_prepared_statement() {
  await withClients(3, async (client, owner, later) => {
    await owner.query(`CREATE TABLE ${schema}.reshaped (a int); INSERT INTO ${schema}.reshaped VALUES (1)`)
    const text = `SELECT * FROM ${schema}.reshaped`
    for (let turn = 0; turn < 3; turn++) await client.query({ name: 'before', text })
    await owner.query(`ALTER TABLE ${schema}.reshaped ADD COLUMN b int`)
    const state = await sqlstateOf(client.query({ name: 'before', text }))
    expectEqual(['0A000', 'no error'].includes(state), true, `SQLSTATE ${state}`)
    expectEqual((await client.query({ name: 'after', text })).rows, [{ a: 1, b: null }])
    expectEqual((await later.query({ name: 'before', text })).rows, [{ a: 1, b: null }])
  })
}

/** A hundred queries at once, simple, unnamed and named ones mixed, every tenth an error in its place. */
async function hundredQueriesAtOnce(client) {
  const kinds = [
    (turn) => value(client, `SELECT ${turn} AS a`),
    (turn) => value(client, 'SELECT $1::int AS a', [turn]),
    (turn) => value(client, { name: `kind-${turn % 4}`, text: `SELECT ${turn % 4} + $1::int AS a`, values: [turn - (turn % 4)] }),
  ]
  const results = await Promise.allSettled(Array.from({ length: 100 }, (_, turn) =>
    turn % 10 === 9 ? client.query('SELECT 1 / $1::int', [0]) : kinds[turn % 3](turn)))
  results.forEach((result, turn) => {
    if (turn % 10 === 9) expectEqual(result.reason.code, '22012')
    else expectEqual(result.value, turn)
  })
}

// Queries that the driver queues are answered in order, errors in their places.
async function queued_queries() {
  await withClients(1, hundredQueriesAtOnce)
}

// In the driver's pipeline mode many queries, each with its Sync, are on their way at once: an error ends its own only.
async function pipelined_queries() {
  await withClients(1, async (client) => {
    if (!client.pipeline) throw new Skip('node-postgres has no pipeline mode in this version')
    await hundredQueriesAtOnce(client)
    await hundredQueriesAtOnce(client)
  }, { pipeline: true })
}

// COMMIT keeps, ROLLBACK undoes, a savepoint undoes its part; an error fails the transaction until ROLLBACK.
async function transactions_and_savepoints() {
  await withClients(1, async (client) => {
    const table = `${schema}.saved`
    await client.query(`CREATE TABLE ${table} (a int PRIMARY KEY)`)
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${table} VALUES ($1)`, [1])
    await client.query('SAVEPOINT s')
    expectEqual(await sqlstateOf(client.query(`INSERT INTO ${table} VALUES ($1)`, [1])), '23505')
    expectEqual(await sqlstateOf(client.query('SELECT 1')), '25P02')
    await client.query('ROLLBACK TO s')
    await client.query(`INSERT INTO ${table} VALUES (2)`)
    await client.query('COMMIT')
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${table} VALUES (3)`)
    await client.query('ROLLBACK')
    expectEqual((await client.query(`SELECT a FROM ${table} ORDER BY a`)).rows.map((row) => row.a), [1, 2])
  })
}

// Tasks that share a Pool, each with transactions, lose nothing.
async function a_pool_with_transactions() {
  const pool = new Pool({ ...target, max: Math.min(20, sessionCount) })
  try {
    await pool.query(`CREATE TABLE ${schema}.pooled (a int)`)
    await Promise.all(Array.from({ length: 200 }, async (_, task) => {
      const client = await pool.connect()
      try {
        await client.query('BEGIN')
        await client.query({ name: 'insert', text: `INSERT INTO ${schema}.pooled VALUES ($1)`, values: [task] })
        await client.query(task % 2 ? 'COMMIT' : 'ROLLBACK')
      } finally {
        client.release()
      }
    }))
    expectEqual((await pool.query(`SELECT count(*)::int AS n, sum(a)::int AS s FROM ${schema}.pooled`)).rows[0], { n: 100, s: 10000 })
  } finally {
    await pool.end()
  }
}

// A cursor (a portal executed with a row limit) is read in pieces, and may be closed early.
async function cursors() {
  await withClients(2, async (client, other) => {
    await client.query('BEGIN')
    const cursor = client.query(new Cursor('SELECT generate_series(1, $1::int) AS a', [250]))
    let seen = 0
    for (let rows = await cursor.read(100); rows.length > 0; rows = await cursor.read(100)) {
      expectEqual(rows[0].a, seen + 1)
      seen += rows.length
      await other.query('SELECT 1')
    }
    expectEqual(seen, 250)
    await client.query('COMMIT')
    const early = client.query(new Cursor('SELECT generate_series(1, 1000000) AS a'))
    expectEqual((await early.read(10)).length, 10)
    await other.query('SELECT 1')
    expectEqual((await early.read(10))[0].a, 11)
    await early.close()
    expectEqual(await value(client, 'SELECT 3 AS a'), 3)
  })
}

// A CancelRequest on its own connection (the driver's own `cancel`) ends the statement with 57014; the session works on.
async function cancel() {
  await withClients(1, async (client) => {
    const sleep = 'SELECT pg_sleep(30)'
    const running = sqlstateOf(client.query(sleep))
    if (!client.processID || !client.secretKey) throw new Skip('node-postgres does not say its cancel key')
    await new Promise((resolve) => setTimeout(resolve, 200))
    const canceller = new Client(target)
    canceller.connection.on('error', () => {})
    canceller.connection.connect(target.port, target.host)
    canceller.connection.on('connect', () => canceller.connection.cancel(client.processID, client.secretKey))
    expectEqual(await running, '57014')
    expectEqual(await value(client, 'SELECT 1 AS a'), 1)
  })
}

// The driver's query_timeout and PostgreSQL's statement_timeout, given at startup, end their own statements only.
async function statement_timeout_at_startup() {
  await withClients(1, async (client) => {
    expectEqual(await sqlstateOf(client.query('SELECT pg_sleep(10)')), '57014')
    expectEqual(await value(client, 'SELECT 1 AS a'), 1)
  }, { statement_timeout: 200 })
}

// Startup options and SET follow each session over many transactions.
async function settings_follow_the_session() {
  const count = Math.min(30, sessionCount)
  await withClients(count, async (...clients) => {
    await Promise.all(clients.map((client, number) => client.query(`SET application_name = 'app ${number}'`)))
    await Promise.all(clients.map(async (client, number) => {
      for (let turn = 0; turn < 10; turn++) {
        const row = (await client.query("SELECT current_setting('application_name') AS a, current_setting('app.user_id') AS b")).rows[0]
        expectEqual(row, { a: `app ${number}`, b: 'everyone' })
      }
    }))
  }, { options: '-c app.user_id=everyone' })
}

// Notifications reach an idle listener, until UNLISTEN.
async function listen_and_notify() {
  await withClients(2, async (listener, sender) => {
    const got = []
    listener.on('notification', (message) => got.push([message.channel, message.payload]))
    await listener.query(`LISTEN ${schema}_news`)
    for (let turn = 0; turn < 3; turn++) {
      await sender.query('SELECT pg_notify($1, $2)', [`${schema}_news`, `news ${turn}`])
      await waitUntil(() => got.length === turn + 1, 'notification')
    }
    expectEqual(got[2], [`${schema}_news`, 'news 2'])
    await listener.query(`UNLISTEN ${schema}_news`)
    await sender.query(`NOTIFY ${schema}_news`)
    await listener.query('SELECT 1')
    expectEqual(got.length, 3)
  })
}

// Errors keep SQLSTATE, detail and constraint; notices arrive.
async function errors_and_notices() {
  await withClients(1, async (client) => {
    await client.query(`CREATE TABLE ${schema}.strict (a int CONSTRAINT only_once UNIQUE)`)
    await client.query(`INSERT INTO ${schema}.strict VALUES (1)`)
    const error = await client.query(`INSERT INTO ${schema}.strict VALUES ($1)`, [1]).catch((failure) => failure)
    expectEqual([error.code, error.constraint, error.detail, error.severity], ['23505', 'only_once', 'Key (a)=(1) already exists.', 'ERROR'])
    const seen = []
    client.on('notice', (notice) => seen.push(notice.message))
    await client.query("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
    expectEqual(seen, ['one', 'two'])
  })
}

// A row and a parameter of 20 MB go through.
async function large_values() {
  await withClients(1, async (client) => {
    const large = Buffer.alloc(20_000_000, 7)
    const back = await value(client, 'SELECT $1::bytea AS a', [large])
    expectEqual(large.equals(back), true, '20 MB unchanged')
  })
}

// A session whose socket breaks in mid-transaction is rolled back: its row lock is free within 5 s.
async function a_severed_session_frees_its_locks() {
  await withClients(2, async (owner, victim) => {
    await owner.query(`CREATE TABLE ${schema}.locked (a int); INSERT INTO ${schema}.locked VALUES (1)`)
    await victim.query(`BEGIN; UPDATE ${schema}.locked SET a = 2`)
    victim.connection.stream.destroy()
    const free = async () => (await sqlstateOf(owner.query(`SELECT a FROM ${schema}.locked FOR UPDATE NOWAIT`))) === 'no error'
    await waitUntil(free, 'row lock free')
    expectEqual(await value(owner, `SELECT a FROM ${schema}.locked`), 1)
  })
}

// A login to a database that does not exist is refused with 3D000.
async function unknown_database_is_3d000() {
  expectEqual(await sqlstateOf(withClients(1, async () => {}, { database: 'no_such_database' })), '3D000')
}

await runChecks(
  () => withClients(1, (client) => client.query(`DROP SCHEMA IF EXISTS ${schema} CASCADE; CREATE SCHEMA ${schema}`)),
  [
    simple_and_parameterised_queries, types_round_trip, named_prepared_statements_over_many_sessions,
    failed_parse_of_a_named_statement, ddl_changes_the_result_of_a_prepared_statement, queued_queries, pipelined_queries,
    transactions_and_savepoints, a_pool_with_transactions, cursors, cancel, statement_timeout_at_startup,
    settings_follow_the_session, listen_and_notify, errors_and_notices, large_values, a_severed_session_frees_its_locks,
    unknown_database_is_3d000,
  ],
  () => withClients(1, (client) => client.query(`DROP SCHEMA IF EXISTS ${schema} CASCADE`)),
)
