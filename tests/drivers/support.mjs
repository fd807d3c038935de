// What the JavaScript driver checks share: the target from the environment, the list of checks, the report.

import { createRequire } from 'node:module'
import { isDeepStrictEqual, inspect } from 'node:util'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
const drivers = process.env.TIDEGATE_DRIVERS_DIR ?? join(here, '../../target/drivers')

// The drivers are installed beside the build, not beside this file.
export const load = createRequire(join(drivers, 'node/package.json'))

export const mode = process.env.TIDEGATE_TEST_MODE ?? 'direct'
export const sessionCount = Number(process.env.TIDEGATE_TEST_SESSIONS ?? 200)
export const schema = `drv_node_${mode}_${process.pid}`
export const target = {
  host: process.env.TIDEGATE_TEST_HOST ?? '127.0.0.1',
  port: Number(process.env.TIDEGATE_TEST_PORT),
  user: process.env.TIDEGATE_TEST_USER ?? 'postgres',
  password: process.env.TIDEGATE_TEST_PASSWORD || undefined,
  database: process.env.TIDEGATE_TEST_DATABASE ?? 'postgres',
  connectionTimeoutMillis: 10_000,
}

// A check that is not over by then has lost an answer; the next ones are made nevertheless.
const checkLimitMs = 15_000

export class Skip extends Error {}

export function expectEqual(actual, expected, what = 'value') {
  if (!isDeepStrictEqual(actual, expected)) {
    throw new Error(`${what}: expected ${inspect(expected)}, got ${inspect(actual)}`)
  }
}

/** The SQLSTATE of what must fail in the database. */
export async function sqlstateOf(promise) {
  try {
    await promise
  } catch (error) {
    return error.code
  }
  return 'no error'
}

export async function waitUntil(condition, what, limitMs = 5000) {
  const deadline = Date.now() + limitMs
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${limitMs} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Runs the checks (named functions) whose name contains one of the arguments; exits 1 when one failed. */
export async function runChecks(before, checks, after) {
  const wanted = process.argv.slice(2)
  let failed = await attempt('set_up', before)
  for (const check of checks) {
    if (wanted.length === 0 || wanted.some((part) => check.name.includes(part))) {
      failed = (await attempt(check.name, check)) || failed
    }
  }
  failed = (await attempt('clean_up', after)) || failed
  process.exit(failed ? 1 : 0)
}

async function attempt(name, body) {
  let timer
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${checkLimitMs} ms`)), checkLimitMs)
  })
  try {
    await Promise.race([body(), limit])
    if (name !== 'set_up' && name !== 'clean_up') console.log(`ok ${name}`)
    return false
  } catch (error) {
    const reason = String(error.message ?? error).replace(/\s+/g, ' ').slice(0, 400)
    console.log(`${error instanceof Skip ? 'skip' : 'FAIL'} ${name}: ${reason}`)
    return !(error instanceof Skip)
  } finally {
    clearTimeout(timer)
  }
}
