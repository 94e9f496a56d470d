/*
 * An engine as an author wrote it for the first release of kvd_plugin.h: volatile, without views,
 * with nothing but what a table must have. Entries are an array in the order of their keys.
 */

#define _GNU_SOURCE

#include "kvd_plugin.h"

#include <pthread.h>
#include <stdlib.h>

KVD_PLUGIN("first-c", "1.0.0");

typedef struct entry {
    uint8_t *key, *value;
    size_t key_len, value_len;
} entry;

typedef struct contents {
    entry *entries;
    size_t len;
    uint64_t index;
    uint8_t *data;
    size_t data_len;
} contents;

typedef struct engine {
    pthread_rwlock_t guard;
    contents now;
} engine;

static uint8_t *copied(kvd_bytes bytes)
{
    uint8_t *copy = malloc(bytes.len + 1);
    if (!copy)
        abort();
    if (bytes.len)
        memcpy(copy, bytes.data, bytes.len);
    return copy;
}

static kvd_bytes key_of(const entry *e)
{
    return (kvd_bytes){e->key, e->key_len};
}

static kvd_bytes value_of(const entry *e)
{
    return (kvd_bytes){e->value, e->value_len};
}

/* The place of the first key that is not below `key`. */
static size_t place(const contents *c, kvd_bytes key)
{
    size_t low = 0, high = c->len;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (kvd_compare(key_of(&c->entries[middle]), key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int is_at(const contents *c, size_t at, kvd_bytes key)
{
    return at < c->len && kvd_compare(key_of(&c->entries[at]), key) == 0;
}

static void take_out(contents *c, size_t from, size_t to)
{
    size_t at;
    if (to <= from)
        return;
    for (at = from; at < to; at++) {
        free(c->entries[at].key);
        free(c->entries[at].value);
    }
    memmove(c->entries + from, c->entries + to, (c->len - to) * sizeof(entry));
    c->len -= to - from;
}

static void put(contents *c, kvd_bytes key, kvd_bytes value)
{
    size_t at = place(c, key);
    entry new_one = {copied(key), copied(value), key.len, value.len};
    if (is_at(c, at, key))
        take_out(c, at, at + 1);
    c->entries = realloc(c->entries, (c->len + 1) * sizeof(entry));
    if (!c->entries)
        abort();
    memmove(c->entries + at + 1, c->entries + at, (c->len - at) * sizeof(entry));
    c->entries[at] = new_one;
    c->len++;
}

static void set_mark(contents *c, const kvd_mark *mark)
{
    free(c->data);
    c->index = mark->index;
    c->data = copied(mark->data);
    c->data_len = mark->data.len;
}

static void end(contents *c)
{
    take_out(c, 0, c->len);
    free(c->entries);
    free(c->data);
    *c = (contents){0};
}

static kvd_status first_open(const kvd_open *cx, void **left, kvd_error *error)
{
    engine *e = calloc(1, sizeof(engine));
    if (!e)
        return kvd_fail(error, KVD_OTHER, "no memory");
    pthread_rwlock_init(&e->guard, NULL);
    kvd_log(cx->host, KVD_LOG_INFO, "opened");
    *left = e;
    return KVD_OK;
}

static void first_free(void *at)
{
    engine *e = at;
    end(&e->now);
    pthread_rwlock_destroy(&e->guard);
    free(e);
}

static kvd_status first_mark(void *at, const kvd_mark_out *out, kvd_error *error)
{
    engine *e = at;
    (void)error;
    pthread_rwlock_rdlock(&e->guard);
    out->give(out->context, (kvd_mark){e->now.index, {e->now.data, e->now.data_len}});
    pthread_rwlock_unlock(&e->guard);
    return KVD_OK;
}

static kvd_status first_get(void *at, kvd_bytes key, const kvd_value_out *out, kvd_error *error)
{
    engine *e = at;
    size_t found;
    (void)error;
    pthread_rwlock_rdlock(&e->guard);
    found = place(&e->now, key);
    if (is_at(&e->now, found, key))
        out->give(out->context, value_of(&e->now.entries[found]));
    pthread_rwlock_unlock(&e->guard);
    return KVD_OK;
}

static kvd_status first_scan(void *at, const kvd_range *range, const kvd_entry_out *out,
                             kvd_error *error)
{
    engine *e = at;
    size_t from, to;
    (void)error;
    pthread_rwlock_rdlock(&e->guard);
    from = place(&e->now, range->from);
    to = range->has_to ? place(&e->now, range->to) : e->now.len;
    while (from < to) {
        const entry *next = &e->now.entries[range->reverse ? --to : from++];
        if (out->give(out->context, key_of(next), value_of(next)))
            break;
    }
    pthread_rwlock_unlock(&e->guard);
    return KVD_OK;
}

static kvd_status first_write(void *at, const kvd_op *ops, size_t ops_len, const kvd_mark *mark,
                              kvd_error *error)
{
    engine *e = at;
    size_t op;
    for (op = 0; op < ops_len; op++)
        if (ops[op].kind < KVD_PUT || ops[op].kind > KVD_DELETE_RANGE)
            return kvd_fail(error, KVD_UNSUPPORTED, "change of kind %u", ops[op].kind);
    pthread_rwlock_wrlock(&e->guard);
    for (op = 0; op < ops_len; op++) {
        size_t from = place(&e->now, ops[op].a);
        if (ops[op].kind == KVD_PUT)
            put(&e->now, ops[op].a, ops[op].b);
        else if (ops[op].kind == KVD_DELETE)
            take_out(&e->now, from, from + is_at(&e->now, from, ops[op].a));
        else
            take_out(&e->now, from, place(&e->now, ops[op].b));
    }
    set_mark(&e->now, mark);
    pthread_rwlock_unlock(&e->guard);
    return KVD_OK;
}

static kvd_status first_sync(void *at, const kvd_mark_out *out, kvd_error *error)
{
    (void)at;
    (void)error;
    out->give(out->context, (kvd_mark){0, {NULL, 0}});
    return KVD_OK;
}

static kvd_status first_replace(void *at, const kvd_feed *feed, const kvd_mark *mark,
                                kvd_error *error)
{
    engine *e = at;
    contents next = {0}, before;
    kvd_bytes key, value;
    int came;
    while ((came = feed->next(feed->context, &key, &value)) == KVD_FEED_ENTRY)
        put(&next, key, value);
    if (came != KVD_FEED_END) {
        end(&next);
        return kvd_fail(error, KVD_OTHER, "the feed failed");
    }
    set_mark(&next, mark);
    pthread_rwlock_wrlock(&e->guard);
    before = e->now;
    e->now = next;
    pthread_rwlock_unlock(&e->guard);
    end(&before);
    return KVD_OK;
}

KVD_SYMBOL const kvd_backend kvd_backend_v1 = {
    .size = sizeof(kvd_backend),
    .caps = KVD_CAP_FAST_READ,
    .open = first_open,
    .free = first_free,
    .mark = first_mark,
    .get = first_get,
    .scan = first_scan,
    .write = first_write,
    .sync = first_sync,
    .replace = first_replace,
};
