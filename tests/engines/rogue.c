/*
 * The example engine in C, misbehaving as its option says.
 *
 *     cc -shared -fPIC -pthread -I plugin-api/include -I plugins/journal -o libkvd_rogue_c.so rogue.c
 */

#define kvd_backend_v1 journal_backend
#include "journal.c"
#undef kvd_backend_v1

static char fault[64];

static int is_fault(const char *name)
{
    return strcmp(fault, name) == 0;
}

static kvd_status rogue_open(const kvd_open *cx, void **engine, kvd_error *error)
{
    snprintf(fault, sizeof(fault), "%s", kvd_option_named(cx, "fault")->text);
    if (is_fault("open without an engine"))
        return KVD_OK;
    if (is_fault("open fails"))
        return kvd_fail(error, KVD_IO, "the disk is %s", "gone");
    kvd_log(cx->host, KVD_LOG_INFO, "opened in %s", cx->dir);
    return journal_open(cx, engine, error);
}

static kvd_status rogue_mark(void *engine, const kvd_mark_out *out, kvd_error *error)
{
    static const uint8_t long_data[(64 << 10) + 1];
    const kvd_mark long_mark = {1, {long_data, sizeof(long_data)}};
    if (is_fault("mark that never comes"))
        return KVD_OK;
    if (is_fault("mark of absurd length")) {
        out->give(out->context, long_mark);
        return KVD_OK;
    }
    if (is_fault("mark twice"))
        journal_mark(engine, out, error);
    return journal_mark(engine, out, error);
}

static kvd_status rogue_get(void *engine, kvd_bytes key, const kvd_value_out *out, kvd_error *error)
{
    kvd_bytes value = {(const uint8_t *)fault, 5};
    if (is_fault("unknown status"))
        return 4711;
    if (is_fault("message without an end")) {
        memset(error->message, 'x', error->capacity);
        return KVD_IO;
    }
    if (is_fault("value of absurd length")) {
        value.len = (size_t)-1;
        out->give(out->context, value);
    } else if (is_fault("value of some gigabytes")) {
        value.len = (uint32_t)-1;
        out->give(out->context, value);
    } else if (is_fault("value without an address")) {
        value.data = NULL;
        out->give(out->context, value);
    } else if (is_fault("value twice")) {
        out->give(out->context, value);
        out->give(out->context, value);
    } else {
        return journal_get(engine, key, out, error);
    }
    return KVD_OK;
}

static kvd_status rogue_scan(void *engine, const kvd_range *range, const kvd_entry_out *out,
                             kvd_error *error)
{
    const kvd_bytes absurd = {(const uint8_t *)fault, SIZE_MAX / 2};
    if (is_fault("key of absurd length")) {
        while (!out->give(out->context, absurd, absurd))
            ;
        return KVD_OK;
    }
    return journal_scan(engine, range, out, error);
}

static kvd_status rogue_view(void *engine, void **view, const kvd_mark_out *out, kvd_error *error)
{
    if (is_fault("view without a view")) {
        journal_mark(engine, out, error);
        return KVD_OK;
    }
    return journal_view(engine, view, out, error);
}

static const kvd_option ROGUE_OPTIONS[] = {
    {"slack", KVD_OPTION_SIZE, "16MiB", "as the example's"},
    {"fault", KVD_OPTION_STRING, "", "what goes wrong"},
};

KVD_SYMBOL const kvd_backend kvd_backend_v1 = {
    .size = sizeof(kvd_backend),
    .caps = KVD_CAP_DURABLE | KVD_CAP_VIEW,
    .options = ROGUE_OPTIONS,
    .options_len = 2,
    .open = rogue_open,
    .free = journal_free,
    .mark = rogue_mark,
    .get = rogue_get,
    .scan = rogue_scan,
    .write = journal_write,
    .sync = journal_sync,
    .replace = journal_replace,
    .view = rogue_view,
    .view_get = journal_view_get,
    .view_scan = journal_view_scan,
    .view_free = journal_view_free,
};
