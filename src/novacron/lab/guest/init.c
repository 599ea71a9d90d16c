/*
 * The lab guest's only program: PID 1, network service, clock ticker and memory dirtier.
 *
 * It loads the modules listed in /modules/order, gives eth0 an address from the kernel command line, listens on
 * port 7007 (TCP lines, UDP datagrams) and powers off when asked by a client or by the power button.
 * README.md beside this file says what a client may send.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    PORT = 7007,
    MAX_CLIENTS = 16,
    MAX_LINE = 512,
    MAX_BUTTONS = 8,
    TICK_NS = 1000000,
    PAGE = 4096,
    PAGE_WORDS = PAGE / sizeof(uint64_t),
    MAX_WORKING_SET_MIB = 1 << 20,
};

static char boot_id[33];
static char name[64] = "guest";

/* ---- time ------------------------------------------------------------------------------------------------ */

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleep_until(int64_t at)
{
    struct timespec t = {at / 1000000000, at % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* ---- the console ------------------------------------------------------------------------------------------ */

static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    fflush(stdout);
}

static void power_off(const char *why)
{
    say("NOVACRON GUEST POWER OFF %s\n", why);
    sync();
    reboot(RB_POWER_OFF);
}

/* ---- the ticker: wakes every millisecond and remembers how late it ever was ------------------------------------ */

static pthread_mutex_t gap_lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t max_gap_ns, gap_at_ns;
static bool restart_gaps;
static _Atomic uint64_t ticks;

static void *tick(void *unused)
{
    struct sched_param priority = {.sched_priority = 50};
    if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority))
        say("cannot raise the ticker's priority\n");
    int64_t last = now_ns(), next = last;
    for (;;) {
        next += TICK_NS;
        if (next <= last) /* late: do not run after lost ticks */
            next = last + TICK_NS;
        sleep_until(next);
        int64_t now = now_ns();
        pthread_mutex_lock(&gap_lock);
        if (restart_gaps) {
            restart_gaps = false;
            max_gap_ns = gap_at_ns = 0;
        } else if (now - last > max_gap_ns) {
            max_gap_ns = now - last;
            gap_at_ns = now;
        }
        pthread_mutex_unlock(&gap_lock);
        last = now;
        ticks++;
    }
    return unused;
}

/* ---- the dirtier: rewrites a working set at a chosen rate; each page carries what it must hold ----------------- */

static pthread_mutex_t dirty_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t dirty_changed = PTHREAD_COND_INITIALIZER;
static uint64_t *pages;
static uint64_t page_count, next_page, dirty_rate_mib, pages_written, pages_bad;

static uint64_t pattern(uint64_t index, uint64_t generation)
{
    uint64_t mixed = (index << 32 ^ generation) * 0x9e3779b97f4a7c15u;
    return mixed ^ mixed >> 29;
}

static void write_page(uint64_t index, uint64_t generation)
{
    uint64_t *page = pages + index * PAGE_WORDS, first = pattern(index, generation);
    page[0] = generation;
    for (int word = 1; word < (int)PAGE_WORDS; word++)
        page[word] = first + word;
}

static bool page_is_good(uint64_t index)
{
    const uint64_t *page = pages + index * PAGE_WORDS;
    uint64_t first = pattern(index, page[0]), difference = 0;
    for (int word = 1; word < (int)PAGE_WORDS; word++)
        difference |= page[word] ^ (first + word);
    return difference == 0;
}

static void rewrite_next_page(void)
{
    if (!page_is_good(next_page))
        pages_bad++;
    write_page(next_page, pages[next_page * PAGE_WORDS] + 1);
    pages_written++;
    next_page = (next_page + 1) % page_count;
}

static void *dirty(void *unused)
{
    const int64_t step_ns = 4000000;
    double owed = 0;
    int64_t last = now_ns();
    for (;;) {
        pthread_mutex_lock(&dirty_lock);
        while (!dirty_rate_mib) {
            pthread_cond_wait(&dirty_changed, &dirty_lock);
            last = now_ns();
            owed = 0;
        }
        int64_t now = now_ns();
        double per_ns = dirty_rate_mib * (1024.0 * 1024 / PAGE) / 1e9;
        owed += (now - last) * per_ns;
        if (owed > 16 * step_ns * per_ns) /* cannot keep up: the rate shown by pages_written is then the truth */
            owed = 16 * step_ns * per_ns;
        last = now;
        for (; owed >= 1; owed--)
            rewrite_next_page();
        pthread_mutex_unlock(&dirty_lock);
        sleep_until(now + step_ns);
    }
    return unused;
}

/* The working set is made anew only when its size changes, so that a rate can be changed under way. */
static const char *set_dirty(uint64_t rate_mib, uint64_t working_set_mib)
{
    const char *answer = "ok\n";
    uint64_t wanted = working_set_mib * (1024 * 1024 / PAGE);
    pthread_mutex_lock(&dirty_lock);
    if (rate_mib && wanted != page_count) {
        if (pages)
            munmap(pages, page_count * PAGE);
        page_count = next_page = 0;
        pages = mmap(NULL, wanted * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) {
            pages = NULL;
            rate_mib = 0;
            answer = "error not enough memory for that working set\n";
        } else {
            page_count = wanted;
            for (uint64_t index = 0; index < page_count; index++)
                write_page(index, 1);
        }
    }
    dirty_rate_mib = rate_mib;
    pthread_cond_signal(&dirty_changed);
    pthread_mutex_unlock(&dirty_lock);
    return answer;
}

static uint64_t count_bad_pages(void)
{
    uint64_t bad = 0;
    pthread_mutex_lock(&dirty_lock);
    for (uint64_t index = 0; index < page_count; index++)
        bad += !page_is_good(index);
    pthread_mutex_unlock(&dirty_lock);
    return bad;
}

/* ---- what a line is answered ------------------------------------------------------------------------------------ */

static uint64_t free_mib(void)
{
    return (uint64_t)sysconf(_SC_AVPHYS_PAGES) * PAGE >> 20;
}

static void answer_status(char *out, size_t size)
{
    pthread_mutex_lock(&gap_lock);
    int64_t gap = restart_gaps ? 0 : max_gap_ns, at = restart_gaps ? 0 : gap_at_ns;
    pthread_mutex_unlock(&gap_lock);
    pthread_mutex_lock(&dirty_lock);
    uint64_t rate = dirty_rate_mib, set = page_count * PAGE >> 20, written = pages_written, bad = pages_bad;
    pthread_mutex_unlock(&dirty_lock);
    int64_t now = now_ns();
    snprintf(out, size,
             "{\"name\":\"%s\",\"boot_id\":\"%s\",\"uptime_ms\":%ld,\"monotonic_ns\":%ld,\"tick_ms\":%g,\"ticks\":%lu,"
             "\"max_gap_us\":%ld,\"gap_at_ns\":%ld,\"dirty_mib_per_s\":%lu,\"wss_mib\":%lu,\"pages_written\":%lu,"
             "\"pages_bad\":%lu,\"memory_free_mib\":%lu}\n",
             name, boot_id, now / 1000000, now, TICK_NS / 1e6, (unsigned long)ticks, gap / 1000, at, rate, set, written,
             bad, free_mib());
}

static void answer_dirty(const char *arguments, char *out, size_t size)
{
    unsigned long rate = 0, set = 0;
    char rest;
    int found = sscanf(arguments, "%lu %lu %c", &rate, &set, &rest);
    if (found < 1 || found > 2 || (rate && (found != 2 || !set)))
        snprintf(out, size, "error dirty needs a rate in MiB/s and a working set in MiB\n");
    else if (rate && (set > MAX_WORKING_SET_MIB || set > free_mib() + (page_count * PAGE >> 20)))
        snprintf(out, size, "error not enough memory for that working set\n");
    else
        snprintf(out, size, "%s", set_dirty(rate, set));
}

/* ---- hardware: what there is of it now, and disks that are written and compared ------------------------------------- */

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        say("cannot write %s: %m\n", path);
    close(fd);
}

/* The kernel leaves vCPUs that were plugged in alone until somebody switches them on. */
static void switch_cpus_on(void)
{
    for (int number = 1; number < sysconf(_SC_NPROCESSORS_CONF); number++) {
        char path[64], state = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", number);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd >= 0 && read(fd, &state, 1) == 1 && state == '0' && pwrite(fd, "1", 1, 0) != 1)
            say("cannot switch %s on: %m\n", path);
        close(fd);
    }
}

static int open_disk(const char *disk, int flags)
{
    char path[32];
    snprintf(path, sizeof path, "/dev/%s", disk);
    return open(path, flags | O_DIRECT | O_CLOEXEC);
}

static int add_disks(char *out, size_t size)
{
    static const char *const kinds[] = {"vd", "sd"};
    int used = 0;
    for (int kind = 0; kind < 2; kind++)
        for (char letter = 'a'; letter <= 'z'; letter++) {
            char disk[8];
            unsigned long bytes = 0;
            snprintf(disk, sizeof disk, "%s%c", kinds[kind], letter);
            int fd = open_disk(disk, O_RDONLY);
            if (fd >= 0 && !ioctl(fd, BLKGETSIZE64, &bytes))
                used += snprintf(out + used, size - used, "%s\"%s\":%lu", used ? "," : "", disk, bytes);
            close(fd);
        }
    return used;
}

static void answer_hardware(char *out, size_t size)
{
    char disks[512] = "";
    switch_cpus_on();
    add_disks(disks, sizeof disks);
    int cards = 0;
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *card = all; card && card->if_index; card++)
        cards += !strncmp(card->if_name, "eth", 3);
    if_freenameindex(all);
    snprintf(out, size, "{\"cpus\":%ld,\"memory_mib\":%lu,\"cards\":%d,\"disks\":{%s}}\n",
             sysconf(_SC_NPROCESSORS_ONLN), (uint64_t)sysconf(_SC_PHYS_PAGES) * PAGE >> 20, cards, disks);
}

/* "write DISK FIRST COUNT SEED": blocks of 4 KiB, each with what only it can hold, past every cache. "compare": bad ones. */
static void answer_disk(const char *arguments, bool writes, char *out, size_t size)
{
    static uint64_t block[PAGE_WORDS] __attribute__((aligned(PAGE)));
    char disk[8];
    unsigned long first, count, seed, bad = 0;
    if (sscanf(arguments, "%7[a-z] %lu %lu %lu", disk, &first, &count, &seed) != 4) {
        snprintf(out, size, "error a disk, its first block, how many, and a seed\n");
        return;
    }
    int fd = open_disk(disk, writes ? O_WRONLY | O_SYNC : O_RDONLY);
    for (unsigned long number = first; fd >= 0 && number < first + count; number++) {
        off_t at = (off_t)number * PAGE;
        if (writes)
            for (int word = 0; word < (int)PAGE_WORDS; word++)
                block[word] = pattern(number, seed) + word;
        if ((writes ? pwrite(fd, block, PAGE, at) : pread(fd, block, PAGE, at)) != PAGE) {
            snprintf(out, size, "error block %lu of %s: %m\n", number, disk);
            close(fd);
            return;
        }
        uint64_t difference = 0;
        for (int word = 0; word < (int)PAGE_WORDS; word++)
            difference |= block[word] ^ (pattern(number, seed) + word);
        bad += difference != 0;
    }
    snprintf(out, size, fd < 0 ? "error there is no such disk\n" : writes ? "ok\n" : "%lu\n", bad);
    close(fd);
}

static void answer(const char *line, char *out, size_t size)
{
    if (!strcmp(line, "clock"))
        snprintf(out, size, "%ld\n", now_ns());
    else if (!strcmp(line, "status"))
        answer_status(out, size);
    else if (!strncmp(line, "echo ", 5))
        snprintf(out, size, "%s\n", line + 5);
    else if (!strncmp(line, "dirty ", 6))
        answer_dirty(line + 6, out, size);
    else if (!strcmp(line, "hardware"))
        answer_hardware(out, size);
    else if (!strncmp(line, "write ", 6))
        answer_disk(line + 6, true, out, size);
    else if (!strncmp(line, "compare ", 8))
        answer_disk(line + 8, false, out, size);
    else if (!strcmp(line, "check"))
        snprintf(out, size, "%lu\n", count_bad_pages());
    else if (!strcmp(line, "gaps reset")) {
        pthread_mutex_lock(&gap_lock);
        restart_gaps = true;
        pthread_mutex_unlock(&gap_lock);
        snprintf(out, size, "ok\n");
    } else if (!strcmp(line, "poweroff"))
        snprintf(out, size, "ok\n");
    else
        snprintf(out, size, "error not a command; known: status, clock, echo, gaps reset, dirty, check, hardware, write, "
                            "compare, poweroff\n");
}

/* ---- the service ------------------------------------------------------------------------------------------------- */

struct client {
    int fd; /* -1: free */
    size_t used;
    int64_t heard_ns;
    char text[MAX_LINE];
};
static struct client clients[MAX_CLIENTS];

static void hang_up(struct client *client)
{
    close(client->fd);
    client->fd = -1;
}

static void answer_lines(struct client *client)
{
    char out[1024], *start = client->text, *end;
    while ((end = memchr(start, '\n', client->text + client->used - start))) {
        *end = 0;
        if (end > start && end[-1] == '\r')
            end[-1] = 0;
        answer(start, out, sizeof out);
        bool leave = !strcmp(start, "poweroff");
        if (send(client->fd, out, strlen(out), MSG_NOSIGNAL) != (ssize_t)strlen(out)) {
            hang_up(client); /* it does not read its answers */
            return;
        }
        if (leave) {
            shutdown(client->fd, SHUT_RDWR);
            usleep(50000); /* let the answer leave the card */
            power_off("asked by a client");
        }
        start = end + 1;
    }
    client->used = client->text + client->used - start;
    memmove(client->text, start, client->used);
    if (client->used == sizeof client->text)
        hang_up(client);
}

static void hear(struct client *client)
{
    ssize_t got = recv(client->fd, client->text + client->used, sizeof client->text - client->used, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        hang_up(client);
        return;
    }
    client->used += got;
    client->heard_ns = now_ns();
    answer_lines(client);
}

/* When every place is taken the client that has been silent longest loses its own. */
static void welcome(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1, seconds = 5;
    if (fd < 0)
        return;
    struct client *place = &clients[0];
    for (struct client *client = clients; client < clients + MAX_CLIENTS; client++) {
        if (client->fd < 0) {
            place = client;
            break;
        }
        if (client->heard_ns < place->heard_ns)
            place = client;
    }
    if (place->fd >= 0)
        hang_up(place);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof seconds);
    *place = (struct client){.fd = fd, .heard_ns = now_ns()};
}

/* A datagram comes back with the guest's clock behind it: "<what was sent> <monotonic_ns>". */
static void echo_datagram(int fd)
{
    char text[128];
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t got = recvfrom(fd, text, 64, 0, (struct sockaddr *)&from, &size);
    if (got < 0)
        return;
    got += sprintf(text + got, " %ld", now_ns());
    sendto(fd, text, got, 0, (struct sockaddr *)&from, size);
}

static void press(int fd)
{
    struct input_event event;
    while (read(fd, &event, sizeof event) == sizeof event)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
            power_off("power button");
}

static int open_port(int type)
{
    int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || (type == SOCK_STREAM && listen(fd, 16)))
        say("cannot listen: %m\n");
    return fd;
}

static void serve(const int *buttons, int button_count)
{
    int listener = open_port(SOCK_STREAM), datagrams = open_port(SOCK_DGRAM);
    for (int place = 0; place < MAX_CLIENTS; place++)
        clients[place].fd = -1;
    say("NOVACRON GUEST READY %ld\n", now_ns() / 1000000);
    for (;;) {
        struct pollfd wanted[2 + MAX_BUTTONS + MAX_CLIENTS];
        int count = 0;
        wanted[count++] = (struct pollfd){listener, POLLIN, 0};
        wanted[count++] = (struct pollfd){datagrams, POLLIN, 0};
        for (int button = 0; button < button_count; button++)
            wanted[count++] = (struct pollfd){buttons[button], POLLIN, 0};
        for (int place = 0; place < MAX_CLIENTS; place++)
            wanted[count++] = (struct pollfd){clients[place].fd, POLLIN, 0}; /* poll ignores -1 */
        if (poll(wanted, count, -1) < 0)
            continue;
        for (int place = 0; place < MAX_CLIENTS; place++)
            if (wanted[2 + button_count + place].revents)
                hear(&clients[place]);
        if (wanted[0].revents)
            welcome(listener);
        if (wanted[1].revents)
            echo_datagram(datagrams);
        for (int button = 0; button < button_count; button++)
            if (wanted[2 + button].revents)
                press(buttons[button]);
    }
}

/* ---- coming up ---------------------------------------------------------------------------------------------------- */

static void mount_systems(void)
{
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int standard = 0; standard < 3; standard++)
        dup2(console, standard);
}

/* The file names stand in the order of their dependencies, one a line. */
static void load_modules(void)
{
    char path[256] = "/modules/";
    size_t prefix = strlen(path);
    FILE *order = fopen("/modules/order", "re");
    if (!order)
        return;
    while (fgets(path + prefix, sizeof path - prefix, order)) {
        path[strcspn(path, "\n")] = 0;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            say("cannot load %s: %m\n", path);
        close(fd);
    }
    fclose(order);
}

/* The value of `novacron.<key>=` on the kernel command line; the last one counts, as with the kernel's own. */
static bool option(const char *key, char *value, size_t size)
{
    char line[4096] = "", *word, *rest = line;
    bool found = false;
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = read(fd, line, sizeof line - 1);
    close(fd);
    line[got < 0 ? 0 : got] = 0;
    while ((word = strsep(&rest, " \n"))) {
        size_t length = strlen(key);
        if (!strncmp(word, "novacron.", 9) && !strncmp(word + 9, key, length) && word[9 + length] == '=') {
            snprintf(value, size, "%s", word + 10 + length);
            found = true;
        }
    }
    return found;
}

static void choose_name(void)
{
    unsigned char random[16];
    if (getrandom(random, sizeof random, GRND_INSECURE) != sizeof random)
        say("no random bytes\n");
    for (size_t at = 0; at < sizeof random; at++)
        sprintf(boot_id + 2 * at, "%02x", random[at]);
    option("name", name, sizeof name);
    for (char *letter = name; *letter; letter++)
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789.-", *letter))
            *letter = '-'; /* it stands in JSON */
    sethostname(name, strlen(name));
}

static void bring_up(int socket_fd, const char *card)
{
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", card);
    ioctl(socket_fd, SIOCGIFFLAGS, &request);
    request.ifr_flags |= IFF_UP;
    if (ioctl(socket_fd, SIOCSIFFLAGS, &request))
        say("cannot bring %s up: %m\n", card);
}

static void set_address(int socket_fd, unsigned long number, const char *address, int prefix)
{
    struct ifreq request = {.ifr_name = "eth0"};
    struct sockaddr_in *field = (struct sockaddr_in *)&request.ifr_addr;
    field->sin_family = AF_INET;
    if (number == SIOCSIFADDR)
        inet_pton(AF_INET, address, &field->sin_addr);
    else
        field->sin_addr.s_addr = htonl(prefix ? ~0u << (32 - prefix) : 0);
    if (ioctl(socket_fd, number, &request))
        say("cannot set the address of eth0: %m\n");
}

static void add_gateway(int socket_fd, const char *gateway)
{
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in *field = (struct sockaddr_in *)&route.rt_gateway;
    route.rt_dst.sa_family = route.rt_genmask.sa_family = field->sin_family = AF_INET;
    inet_pton(AF_INET, gateway, &field->sin_addr);
    if (ioctl(socket_fd, SIOCADDRT, &route))
        say("cannot set the gateway: %m\n");
}

/* Without novacron.ip the address is the one QEMU's user-mode network forwards to. */
static void configure_network(void)
{
    char address[64] = "10.0.2.15/24", gateway[64] = "10.0.2.2";
    bool given = option("ip", address, sizeof address), routed = option("gw", gateway, sizeof gateway) || !given;
    char *slash = strchr(address, '/');
    int prefix = slash ? atoi(slash + 1) : 24, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (slash)
        *slash = 0;
    bring_up(fd, "lo");
    if (if_nametoindex("eth0")) {
        set_address(fd, SIOCSIFADDR, address, prefix);
        set_address(fd, SIOCSIFNETMASK, address, prefix);
        bring_up(fd, "eth0");
        if (routed)
            add_gateway(fd, gateway);
    }
    close(fd);
}

/* Tell the network when an address comes up: the last guest that had it may have had another card. */
static void announce_addresses(void)
{
    int fd = open("/proc/sys/net/ipv4/conf/all/arp_notify", O_WRONLY | O_CLOEXEC);
    if (write(fd, "1", 1) != 1)
        say("cannot switch announcements on: %m\n");
    close(fd);
}

static int open_buttons(int *buttons)
{
    int count = 0;
    for (int number = 0; number < MAX_BUTTONS; number++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", number);
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0)
            buttons[count++] = fd;
    }
    return count;
}

int main(void)
{
    int buttons[MAX_BUTTONS];
    pthread_t thread;
    mount_systems();
    load_modules();
    put("/sys/devices/system/memory/auto_online_blocks", "online_movable");
    choose_name();
    announce_addresses();
    configure_network();
    mlockall(MCL_CURRENT | MCL_FUTURE);
    pthread_create(&thread, NULL, tick, NULL);
    pthread_create(&thread, NULL, dirty, NULL);
    serve(buttons, open_buttons(buttons));
}
