/* A long line: carries Ethernet frames between two descriptors, late, and sometimes not at all.
 *
 *   wire FD FD SEED      each FD gives and takes one whole frame per read and write
 *
 * Orders come on standard input, one a line: LATENCY_US JITTER_US LOSS_PPM. It ends when standard input does, so that
 * it never outlives whoever laid it. Latency is one way, the same both ways; frames stay in order, as on a real line;
 * which frames are lost depends on SEED and nothing else. What the far side does not take at once is lost, as is
 * what would make more than QUEUE_BYTES wait.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { FRAME_BYTES = 65536 + 64, QUEUE_BYTES = 64 << 20, BATCH = 64, LINE_BYTES = 128 };

struct frame {
    struct frame *next;
    int64_t due_ns;
    size_t bytes;
    unsigned char data[];
};

struct way {
    int from, to;
    uint64_t random;
    int64_t last_due_ns;
    size_t waiting_bytes;
    struct frame *head, **tail;
};

static int64_t latency_ns, jitter_ns, loss_ppm;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static uint64_t draw(struct way *way, uint64_t below) {
    way->random ^= way->random << 13; /* xorshift64 */
    way->random ^= way->random >> 7;
    way->random ^= way->random << 17;
    return way->random % below;
}

static void fail(const char *doing) {
    perror(doing);
    exit(1);
}

static void send_on(struct way *way, const void *data, size_t bytes) {
    /* EAGAIN, ENOBUFS: no room. ENETDOWN, EIO: the other end is unplugged. Either way the frame is lost, and all is well. */
    if (write(way->to, data, bytes) < 0 && errno == EBADF) fail("write");
}

static void send_due(struct way *way, int64_t now) {
    struct frame *frame;
    while ((frame = way->head) && frame->due_ns <= now) {
        way->head = frame->next;
        if (!way->head) way->tail = &way->head;
        way->waiting_bytes -= frame->bytes;
        send_on(way, frame->data, frame->bytes);
        free(frame);
    }
}

static void take_in(struct way *way, const void *data, size_t bytes) {
    if (loss_ppm && (int64_t)draw(way, 1000000) < loss_ppm) return;
    int64_t due = now_ns() + latency_ns;
    if (jitter_ns) due += (int64_t)draw(way, 2 * jitter_ns + 1) - jitter_ns;
    if (due < way->last_due_ns) due = way->last_due_ns;
    way->last_due_ns = due;
    if (!way->head && due <= now_ns()) {
        send_on(way, data, bytes);
        return;
    }
    if (way->waiting_bytes + bytes > QUEUE_BYTES) return;
    struct frame *frame = malloc(sizeof *frame + bytes);
    if (!frame) return;
    *frame = (struct frame){.due_ns = due, .bytes = bytes};
    memcpy(frame->data, data, bytes);
    *way->tail = frame;
    way->tail = &frame->next;
    way->waiting_bytes += bytes;
}

static void read_frames(struct way *way) {
    static unsigned char data[FRAME_BYTES];
    for (int count = 0; count < BATCH; count++) {
        ssize_t bytes = read(way->from, data, sizeof data);
        if (bytes > 0) take_in(way, data, bytes);
        else if (bytes < 0 && errno == EINTR) continue;
        else return; /* nothing more, or the end is unplugged for now */
    }
}

/* 0: standard input has ended. */
static int read_orders(void) {
    static char line[LINE_BYTES];
    static size_t held;
    ssize_t bytes = read(0, line + held, sizeof line - 1 - held);
    if (bytes <= 0) return bytes < 0 && errno == EINTR;
    held += bytes;
    line[held] = 0;
    for (char *end; (end = strchr(line, '\n')); held = strlen(line)) {
        long long latency_us, jitter_us, loss;
        if (sscanf(line, "%lld %lld %lld", &latency_us, &jitter_us, &loss) == 3) {
            latency_ns = latency_us * 1000;
            jitter_ns = jitter_us * 1000;
            loss_ppm = loss;
            if (write(1, "done\n", 5) < 0) return 0;
        }
        memmove(line, end + 1, strlen(end + 1) + 1);
    }
    if (held == sizeof line - 1) held = 0;
    return 1;
}

static struct timespec *until_due(const struct way ways[2], struct timespec *wait) {
    int64_t due = INT64_MAX;
    for (int i = 0; i < 2; i++)
        if (ways[i].head && ways[i].head->due_ns < due) due = ways[i].head->due_ns;
    if (due == INT64_MAX) return NULL;
    int64_t left = due - now_ns();
    if (left < 0) left = 0;
    *wait = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    return wait;
}

int main(int count, char **words) {
    if (count != 4) {
        fprintf(stderr, "usage: wire FD FD SEED\n");
        return 2;
    }
    int near = atoi(words[1]), far = atoi(words[2]);
    uint64_t seed = strtoull(words[3], NULL, 10) * UINT64_C(0x9e3779b97f4a7c15) + 1;
    struct way ways[2] = {{.from = near, .to = far, .random = seed | 1}, {.from = far, .to = near, .random = ~seed | 1}};
    for (int i = 0; i < 2; i++) {
        ways[i].tail = &ways[i].head;
        if (fcntl(ways[i].from, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
    }
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;) {
        struct pollfd polled[3] = {{0, POLLIN, 0}, {near, POLLIN, 0}, {far, POLLIN, 0}};
        struct timespec wait;
        if (ppoll(polled, 3, until_due(ways, &wait), NULL) < 0 && errno != EINTR) fail("poll");
        for (int i = 0; i < 2; i++) {
            send_due(&ways[i], now_ns());
            if (polled[1 + i].revents & (POLLIN | POLLERR)) read_frames(&ways[i]);
        }
        if (polled[0].revents && !read_orders()) return 0;
    }
}
