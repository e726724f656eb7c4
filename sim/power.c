/* Preloaded into a process whose power is to be cut: what it does to one folder is written into a log, so that
 * sim/power_disk.py can tell what a disk would hold that loses all that was not synced. The same library
 * makes that folder's disk full and shifts the process's wall clock, as a small shared file says.
 *
 * Promises: the log's order is the order of the acts; an act is in the log before the call returns; an act
 * that can't be followed (a shared writable mapping, sendfile) is in the log as such, never missed in silence.
 * SQLite's "-shm" file is let be: it means nothing after a restart (sqlite.org/walformat.html).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_PATH 4096
#define NO_LIMIT (-1)

/* The shared file: written by the driver, but for `recorded`. */
struct control {
    volatile int64_t clock_shift_ns;
    volatile int64_t room_bytes; /* what the folder's files may still grow by; -1: without bound */
    volatile int64_t kill_at;    /* SIGKILL instead of the act of this number, from 1; 0: never */
    volatile int64_t recorded;   /* acts so far */
};

/* One act; two paths and data follow. All little-endian on the machines this runs on. */
struct record {
    uint8_t op;
    uint8_t reserved[3];
    uint32_t path_bytes, second_path_bytes;
    uint32_t reserved_too;
    uint64_t inode, offset, data_bytes;
};

static char root[MOST_PATH];
static size_t root_bytes;
static int log_fd = -1;
static struct control none = {0, NO_LIMIT, 0, 0};
static struct control *control = &none;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

/* The descriptors are moved out of the way of programs that number theirs. */
static int out_of_the_way(int fd)
{
    int moved = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 900);
    if (fd >= 0)
        close(fd);
    return moved;
}

/* Begin to record what this process does below `folder`, a real path. 0, or an errno. */
int quarry_power_begin(const char *folder, const char *log, const char *shared)
{
    int fd = syscall(SYS_openat, AT_FDCWD, shared, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (found == MAP_FAILED)
        return errno;
    fd = out_of_the_way(syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (fd < 0)
        return errno;
    snprintf(root, sizeof root, "%s", folder);
    root_bytes = strlen(root);
    control = found;
    log_fd = fd;
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *folder = getenv("QUARRY_POWER_ROOT");
    const char *log = getenv("QUARRY_POWER_LOG");
    const char *shared = getenv("QUARRY_POWER_CONTROL");
    if (folder && log && shared && quarry_power_begin(folder, log, shared) != 0) {
        static const char failed[] = "quarry: the recording of this disk can't begin\n";
        (void)!write(2, failed, sizeof failed - 1);
        _exit(99);
    }
}

static int below_root(const char *path)
{
    return log_fd >= 0 && strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || !path[root_bytes]);
}

static int is_shm(const char *path)
{
    size_t bytes = strlen(path);
    return bytes > 4 && strcmp(path + bytes - 4, "-shm") == 0;
}

/* The name of a descriptor's file, if it is below the root. */
static int fd_below_root(int fd, char *path)
{
    char link[64];
    if (log_fd < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, MOST_PATH - 1);
    if (bytes <= 0)
        return 0;
    path[bytes] = 0;
    return below_root(path);
}

static int path_below_root(int folder, const char *name, char *path)
{
    if (log_fd < 0 || name == NULL)
        return 0;
    if (name[0] == '/') {
        snprintf(path, MOST_PATH, "%s", name);
    } else {
        char of[MOST_PATH];
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, of, sizeof of) < 0)
                return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, of, sizeof of - 1);
            if (bytes <= 0)
                return 0;
            of[bytes] = 0;
        }
        if (snprintf(path, MOST_PATH, "%s/%s", of, name) >= MOST_PATH)
            return 0;
    }
    return below_root(path);
}

static void note(char op, const struct stat *file, uint64_t offset, const char *path, const char *second,
                 const void *data, size_t bytes)
{
    struct record head = {0};
    head.op = op;
    head.path_bytes = path ? strlen(path) : 0;
    head.second_path_bytes = second ? strlen(second) : 0;
    head.inode = file ? file->st_ino : 0;
    head.offset = offset;
    head.data_bytes = data ? bytes : 0;
    struct iovec parts[] = {{&head, sizeof head},
                            {(void *)path, head.path_bytes},
                            {(void *)second, head.second_path_bytes},
                            {(void *)data, head.data_bytes}};
    int before = errno;
    if (syscall(SYS_writev, log_fd, parts, 4) < 0)
        _exit(98); /* a log with a hole would lie */
    errno = before;
}

/* The next act is about to be: or is it the one before which the power goes? */
static void step(void)
{
    control->recorded++;
    if (control->kill_at && control->recorded == control->kill_at)
        syscall(SYS_kill, getpid(), SIGKILL);
}

/* How much of `bytes` more there is room for; 0 with ENOSPC for none. */
static size_t room_for(uint64_t size, uint64_t offset, size_t bytes)
{
    int64_t room = control->room_bytes;
    if (room == NO_LIMIT || offset + bytes <= size)
        return bytes;
    uint64_t most = size + (uint64_t)room;
    if (offset >= most) {
        errno = ENOSPC;
        return 0;
    }
    return offset + bytes <= most ? bytes : (size_t)(most - offset);
}

static void grown(uint64_t before, uint64_t after)
{
    int64_t room = control->room_bytes;
    if (room != NO_LIMIT && after > before)
        control->room_bytes = (int64_t)(after - before) < room ? room - (int64_t)(after - before) : 0;
}

/* --- names ------------------------------------------------------------------------------------- */

static int open_any(int folder, const char *name, int flags, mode_t mode)
{
    char path[MOST_PATH];
    int writes = (flags & (O_CREAT | O_TRUNC)) != 0;
    if (!writes || (flags & O_TMPFILE) == O_TMPFILE || !path_below_root(folder, name, path)) {
        int fd = syscall(SYS_openat, folder, name, flags, mode);
        if (fd >= 0 && (flags & O_TMPFILE) == O_TMPFILE && path_below_root(folder, name, path))
            note('?', NULL, 0, path, "O_TMPFILE", NULL, 0);
        return fd;
    }
    pthread_mutex_lock(&one_at_a_time);
    struct stat before, after;
    int was = syscall(SYS_newfstatat, AT_FDCWD, path, &before, 0) == 0;
    int fd;
    if (!was && control->room_bytes == 0 && !is_shm(path)) {
        errno = ENOSPC;
        fd = -1;
    } else {
        step();
        fd = syscall(SYS_openat, folder, name, flags, mode);
        if (fd >= 0 && syscall(SYS_fstat, fd, &after) == 0 && S_ISREG(after.st_mode)) {
            if (!was)
                note('C', &after, 0, path, NULL, NULL, 0);
            else if (flags & O_TRUNC)
                note('T', &after, 0, path, NULL, NULL, 0);
        }
    }
    pthread_mutex_unlock(&one_at_a_time);
    return fd;
}

#define MODE_OF(flags)                                                                                       \
    mode_t mode = 0;                                                                                         \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                   \
        va_list more;                                                                                        \
        va_start(more, flags);                                                                               \
        mode = va_arg(more, mode_t);                                                                         \
        va_end(more);                                                                                        \
    }

int open(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(AT_FDCWD, name, flags, mode);
}

int openat(int folder, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(folder, name, flags, mode);
}

int openat64(int folder, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_any(folder, name, flags, mode);
}

static int change_name(char op, int folder, const char *from, int other, const char *to, long result(int, const char *, int, const char *, unsigned), unsigned flags)
{
    char path[MOST_PATH], second[MOST_PATH];
    int ours = path_below_root(folder, from, path);
    int other_ours = to != NULL && path_below_root(other, to, second);
    if (!ours && !other_ours)
        return result(folder, from, other, to, flags);
    pthread_mutex_lock(&one_at_a_time);
    int code;
    if (op == 'M' && control->room_bytes == 0) {
        errno = ENOSPC;
        code = -1;
    } else {
        step();
        code = result(folder, from, other, to, flags);
        if (code == 0)
            note(ours && (to == NULL || other_ours) ? op : '?', NULL, 0, path, to ? second : NULL, NULL, 0);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return code;
}

static long do_rename(int folder, const char *from, int other, const char *to, unsigned flags)
{
    return syscall(SYS_renameat2, folder, from, other, to, flags);
}

static long do_link(int folder, const char *from, int other, const char *to, unsigned flags)
{
    return syscall(SYS_linkat, folder, from, other, to, flags);
}

static long do_unlink(int folder, const char *name, int other, const char *none_too, unsigned flags)
{
    (void)other, (void)none_too;
    return syscall(SYS_unlinkat, folder, name, flags);
}

static long do_mkdir(int folder, const char *name, int other, const char *none_too, unsigned mode)
{
    (void)other, (void)none_too;
    return syscall(SYS_mkdirat, folder, name, mode);
}

int rename(const char *from, const char *to)
{
    return change_name('R', AT_FDCWD, from, AT_FDCWD, to, do_rename, 0);
}

int renameat(int folder, const char *from, int other, const char *to)
{
    return change_name('R', folder, from, other, to, do_rename, 0);
}

int renameat2(int folder, const char *from, int other, const char *to, unsigned flags)
{
    return change_name(flags & 2 ? '?' : 'R', folder, from, other, to, do_rename, flags);
}

int link(const char *from, const char *to)
{
    return change_name('L', AT_FDCWD, from, AT_FDCWD, to, do_link, 0);
}

int linkat(int folder, const char *from, int other, const char *to, int flags)
{
    return change_name('L', folder, from, other, to, do_link, flags);
}

int unlink(const char *name)
{
    return change_name('U', AT_FDCWD, name, 0, NULL, do_unlink, 0);
}

int unlinkat(int folder, const char *name, int flags)
{
    return change_name('U', folder, name, 0, NULL, do_unlink, flags);
}

int rmdir(const char *name)
{
    return change_name('U', AT_FDCWD, name, 0, NULL, do_unlink, AT_REMOVEDIR);
}

int mkdir(const char *name, mode_t mode)
{
    return change_name('M', AT_FDCWD, name, 0, NULL, do_mkdir, mode);
}

int mkdirat(int folder, const char *name, mode_t mode)
{
    return change_name('M', folder, name, 0, NULL, do_mkdir, mode);
}

/* --- contents ---------------------------------------------------------------------------------- */

/* Whether this descriptor is a file whose content is recorded; its state before the act. */
static int is_ours(int fd, char *path, struct stat *file)
{
    return fd_below_root(fd, path) && !is_shm(path) && syscall(SYS_fstat, fd, file) == 0 && S_ISREG(file->st_mode);
}

static ssize_t write_at(int fd, const void *data, size_t bytes, int64_t offset)
{
    char path[MOST_PATH];
    struct stat file;
    if (!is_ours(fd, path, &file))
        return offset < 0 ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, offset);
    pthread_mutex_lock(&one_at_a_time);
    syscall(SYS_fstat, fd, &file);
    int appends = syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
    uint64_t at = offset >= 0 ? (uint64_t)offset
                  : appends   ? (uint64_t)file.st_size
                              : (uint64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t done = -1;
    size_t most = room_for(file.st_size, at, bytes);
    if (most > 0 || bytes == 0) {
        step();
        done = offset < 0 ? syscall(SYS_write, fd, data, most) : syscall(SYS_pwrite64, fd, data, most, offset);
        if (done > 0) {
            grown(file.st_size, at + done);
            note('W', &file, at, path, NULL, data, done);
        }
    }
    pthread_mutex_unlock(&one_at_a_time);
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    return write_at(fd, data, bytes, -1);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    return write_at(fd, data, bytes, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset)
{
    return write_at(fd, data, bytes, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    char path[MOST_PATH];
    struct stat file;
    if (!is_ours(fd, path, &file))
        return syscall(SYS_writev, fd, parts, count);
    ssize_t all = 0;
    for (int one = 0; one < count; one++) {
        ssize_t done = write_at(fd, parts[one].iov_base, parts[one].iov_len, -1);
        if (done < 0)
            return all ? all : -1;
        all += done;
        if ((size_t)done < parts[one].iov_len)
            break;
    }
    return all;
}

/* What is not followed: it is done, and the log says that it was. */
static void lost_track(int fd, const char *what)
{
    char path[MOST_PATH];
    struct stat file;
    if (is_ours(fd, path, &file))
        note('?', &file, 0, path, what, NULL, 0);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    lost_track(fd, "pwritev");
    return syscall(SYS_pwritev, fd, parts, count, offset, 0);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
    return pwritev(fd, parts, count, offset);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t bytes)
{
    lost_track(out, "sendfile");
    return syscall(SYS_sendfile, out, in, offset, bytes);
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t bytes)
{
    return sendfile(out, in, offset, bytes);
}

ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *offset, size_t bytes, unsigned flags)
{
    lost_track(out, "copy_file_range");
    return syscall(SYS_copy_file_range, in, in_offset, out, offset, bytes, flags);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    lost_track(fd, "fallocate");
    return syscall(SYS_fallocate, fd, mode, offset, bytes);
}

int fallocate64(int fd, int mode, off_t offset, off_t bytes)
{
    return fallocate(fd, mode, offset, bytes);
}

int posix_fallocate(int fd, off_t offset, off_t bytes)
{
    return fallocate(fd, 0, offset, bytes) == 0 ? 0 : errno;
}

int posix_fallocate64(int fd, off_t offset, off_t bytes)
{
    return posix_fallocate(fd, offset, bytes);
}

void *mmap(void *where, size_t bytes, int access, int flags, int fd, off_t offset)
{
    if (fd >= 0 && (flags & MAP_SHARED) && (access & PROT_WRITE))
        lost_track(fd, "mmap");
    return (void *)syscall(SYS_mmap, where, bytes, access, flags, fd, offset);
}

void *mmap64(void *where, size_t bytes, int access, int flags, int fd, off_t offset)
{
    return mmap(where, bytes, access, flags, fd, offset);
}

int ftruncate(int fd, off_t bytes)
{
    char path[MOST_PATH];
    struct stat file;
    if (!is_ours(fd, path, &file))
        return syscall(SYS_ftruncate, fd, bytes);
    pthread_mutex_lock(&one_at_a_time);
    int code = -1;
    if (room_for(file.st_size, 0, bytes) == (size_t)bytes) {
        step();
        code = syscall(SYS_ftruncate, fd, bytes);
        if (code == 0) {
            grown(file.st_size, bytes);
            note('T', &file, bytes, path, NULL, NULL, 0);
        }
    } else {
        errno = ENOSPC;
    }
    pthread_mutex_unlock(&one_at_a_time);
    return code;
}

int ftruncate64(int fd, off_t bytes)
{
    return ftruncate(fd, bytes);
}

int truncate(const char *name, off_t bytes)
{
    int fd = open_any(AT_FDCWD, name, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int code = ftruncate(fd, bytes), why = errno;
    close(fd);
    errno = why;
    return code;
}

int truncate64(const char *name, off_t bytes)
{
    return truncate(name, bytes);
}

static int sync_any(int fd, long number)
{
    char path[MOST_PATH];
    struct stat file;
    if (!fd_below_root(fd, path) || is_shm(path) || syscall(SYS_fstat, fd, &file) != 0)
        return syscall(number, fd);
    pthread_mutex_lock(&one_at_a_time);
    step();
    /* Not done in truth: the log says what is safe, and the machine's own disk need not wait for it. */
    note(S_ISDIR(file.st_mode) ? 'D' : 'S', &file, 0, path, NULL, NULL, 0);
    pthread_mutex_unlock(&one_at_a_time);
    return 0;
}

int fsync(int fd)
{
    return sync_any(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return sync_any(fd, SYS_fdatasync);
}

/* --- a full disk, and the clock ---------------------------------------------------------------- */

static void say_full(const char *path, struct statvfs *said)
{
    if (below_root(path) && control->room_bytes != NO_LIMIT)
        said->f_bavail = said->f_bfree = (fsblkcnt_t)control->room_bytes / (said->f_frsize ? said->f_frsize : 1);
}

static int statvfs_of(int fd, const char *path, struct statvfs *said)
{
    struct statfs found;
    long code = path ? syscall(SYS_statfs, path, &found) : syscall(SYS_fstatfs, fd, &found);
    if (code != 0)
        return -1;
    memset(said, 0, sizeof *said);
    said->f_bsize = found.f_bsize;
    said->f_frsize = found.f_frsize ? found.f_frsize : found.f_bsize;
    said->f_blocks = found.f_blocks;
    said->f_bfree = found.f_bfree;
    said->f_bavail = found.f_bavail;
    said->f_files = found.f_files;
    said->f_ffree = said->f_favail = found.f_ffree;
    said->f_namemax = found.f_namelen;
    char of_fd[MOST_PATH];
    if (path)
        say_full(path, said);
    else if (fd_below_root(fd, of_fd))
        say_full(of_fd, said);
    return 0;
}

int statvfs(const char *path, struct statvfs *said)
{
    return statvfs_of(-1, path, said);
}

int statvfs64(const char *path, struct statvfs64 *said)
{
    return statvfs_of(-1, path, (struct statvfs *)said);
}

int fstatvfs(int fd, struct statvfs *said)
{
    return statvfs_of(fd, NULL, said);
}

int fstatvfs64(int fd, struct statvfs64 *said)
{
    return statvfs_of(fd, NULL, (struct statvfs *)said);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int code = syscall(SYS_clock_gettime, clock, now);
    if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && control->clock_shift_ns) {
        int64_t shifted = now->tv_sec * INT64_C(1000000000) + now->tv_nsec + control->clock_shift_ns;
        if (shifted < 0)
            shifted = 0;
        now->tv_sec = shifted / INT64_C(1000000000);
        now->tv_nsec = shifted % INT64_C(1000000000);
    }
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found) != 0)
        return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec found;
    if (clock_gettime(CLOCK_REALTIME, &found) != 0)
        return -1;
    if (where)
        *where = found.tv_sec;
    return found.tv_sec;
}
