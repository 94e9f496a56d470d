/*
 * Tables that no host should call: what is wrong is said when this is compiled, by -DBAD_...
 */

#include "kvd_plugin.h"

#ifdef BAD_VERSION
#undef KVD_API_VERSION
#define KVD_API_VERSION 7
#endif

#ifdef BAD_NAME
KVD_PLUGIN("", "1.0.0");
#else
KVD_PLUGIN("bad", "1.0.0");
#endif

static kvd_status bad_open(const kvd_open *cx, void **engine, kvd_error *error)
{
    (void)cx;
    (void)engine;
    return kvd_fail(error, KVD_OTHER, "opened all the same");
}

static void bad_free(void *engine)
{
    (void)engine;
}

static kvd_status bad_mark(void *engine, const kvd_mark_out *out, kvd_error *error)
{
    (void)engine;
    (void)out;
    (void)error;
    return KVD_OTHER;
}

static kvd_status bad_get(void *engine, kvd_bytes key, const kvd_value_out *out, kvd_error *error)
{
    (void)engine;
    (void)key;
    (void)out;
    (void)error;
    return KVD_OTHER;
}

static kvd_status bad_scan(void *engine, const kvd_range *range, const kvd_entry_out *out,
                           kvd_error *error)
{
    (void)engine;
    (void)range;
    (void)out;
    (void)error;
    return KVD_OTHER;
}

static kvd_status bad_write(void *engine, const kvd_op *ops, size_t ops_len, const kvd_mark *mark,
                            kvd_error *error)
{
    (void)engine;
    (void)ops;
    (void)ops_len;
    (void)mark;
    (void)error;
    return KVD_OTHER;
}

static kvd_status bad_replace(void *engine, const kvd_feed *feed, const kvd_mark *mark,
                              kvd_error *error)
{
    (void)engine;
    (void)feed;
    (void)mark;
    (void)error;
    return KVD_OTHER;
}

#ifdef BAD_OPTION
static const kvd_option options[] = {{"named", KVD_OPTION_INT, NULL, "has no default"}};
#endif

#ifndef BAD_SYMBOL
KVD_SYMBOL const kvd_backend kvd_backend_v1 = {
#if defined(BAD_SIZE_SMALL)
    .size = offsetof(kvd_backend, close),
#elif defined(BAD_SIZE_ZERO)
    .size = 0,
#elif defined(BAD_SIZE_ABSURD)
    .size = (size_t)-8,
#else
    .size = sizeof(kvd_backend),
#endif
#ifdef BAD_VIEW
    .caps = KVD_CAP_VIEW,
#endif
#ifdef BAD_COMPACT
    .caps = KVD_CAP_COMPACT,
#endif
#ifdef BAD_OPTIONS
    .options_len = 3,
#endif
#ifdef BAD_OPTION
    .options = options,
    .options_len = 1,
#endif
#ifdef BAD_LIMITS
    BAD_LIMITS,
#endif
    .open = bad_open,
    .free = bad_free,
    .mark = bad_mark,
#ifndef BAD_GET
    .get = bad_get,
#endif
    .scan = bad_scan,
    .write = bad_write,
    .sync = bad_mark,
    .replace = bad_replace,
};
#endif
