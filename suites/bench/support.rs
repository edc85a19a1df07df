//! What the benchmarks share: trees to work on, and the plainest way to do what is measured.

#![allow(dead_code)] // Every benchmark uses a part of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use graphtest::archive::{LayerStream, WriteOptions};
use graphtest::graphdriver::{CreateOpts, Driver, InitOptions};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags};

/// A directory that is removed at the end: below `$GRAPHTEST_BENCH_DIR`, else in the system's place for temporary files. Numbers from a
/// tmpfs say little about drivers.
pub fn work_dir() -> tempfile::TempDir {
    let base =
        std::env::var_os("GRAPHTEST_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new()
        .prefix("graphtest-bench-")
        .tempdir_in(base)
        .expect("a directory to work in")
}

/// Makes `files` files of `size` bytes, a hundred to a directory and ten directories to a directory.
pub fn make_tree(root: &Path, files: usize, size: usize) {
    let content: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
    for dir in 0..files.div_ceil(100) {
        let path = root.join(format!("group-{:03}/dir-{dir:04}", dir / 10));
        fs::create_dir_all(&path).expect("mkdir");
        for file in dir * 100..((dir + 1) * 100).min(files) {
            fs::write(path.join(format!("file-{file:06}")), &content).expect("write");
        }
    }
}

/// Makes one file of `size` bytes without holes.
pub fn make_large_file(path: &Path, size: u64) {
    let mut file = File::create(path).expect("create");
    let mut chunk = vec![0u8; 1 << 20];
    let mut left = size;
    let mut seed = 1u32;
    while left > 0 {
        for word in chunk.chunks_exact_mut(4) {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            word.copy_from_slice(&seed.to_le_bytes());
        }
        let n = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&chunk[..n]).expect("write");
        left -= n as u64;
    }
}

/// Copies a tree as `cp -a` does, and gives the ctime of a file made right after it.
pub fn copy_tree(from: &Path, to: &Path) -> graphtest::tree::Timestamp {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .expect("cp can be run");
    assert!(status.success(), "cp: {status}");
    let mark = tempfile::NamedTempFile::new_in(to.parent().expect("a parent")).expect("a file");
    let st = rustix::fs::statx(
        mark.as_file(),
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )
    .expect("statx");
    graphtest::tree::Timestamp {
        secs: st.stx_ctime.tv_sec,
        nanos: st.stx_ctime.tv_nsec,
    }
}

/// The least that any comparison of trees must do: read every directory and statx every entry of all of them, on all processors.
/// Gives the number of entries.
pub fn bare_statx(roots: &[&Path]) -> usize {
    let queue = Mutex::new((
        roots.iter().map(|p| p.to_path_buf()).collect::<Vec<_>>(),
        0usize,
    ));
    let work = || {
        let mut count = 0;
        let mut buffer = Vec::with_capacity(32 * 1024);
        loop {
            let mut state = queue.lock().expect("no panic");
            let Some(path) = state.0.pop() else {
                if state.1 == 0 {
                    return count;
                }
                drop(state);
                std::thread::yield_now();
                continue;
            };
            state.1 += 1;
            drop(state);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(&path, flags, Mode::empty()).expect("open");
            let mut below = Vec::new();
            let mut entries = RawDir::new(dir.as_fd(), buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry.expect("getdents");
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let st = rustix::fs::statx(
                    &dir,
                    name,
                    AtFlags::SYMLINK_NOFOLLOW,
                    StatxFlags::BASIC_STATS,
                )
                .expect("statx");
                count += 1;
                if FileType::from_raw_mode(st.stx_mode.into()) == FileType::Directory {
                    below.push(path.join(name.to_str().expect("UTF-8")));
                }
            }
            let mut state = queue.lock().expect("no panic");
            state.0.append(&mut below);
            state.1 -= 1;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().map(|t| t.join().expect("no panic")).sum()
    })
}

/// Opens a directory.
pub fn open_dir(path: &Path) -> File {
    File::open(path).expect("open")
}

/// Reads a stream to its end and throws it away; gives its length.
pub fn drain(mut stream: impl io::Read) -> u64 {
    let mut buffer = vec![0; 128 * 1024];
    let mut sum = 0;
    loop {
        match stream.read(&mut buffer).expect("read") {
            0 => return sum,
            n => sum += n as u64,
        }
    }
}

/// Writes a tree as an archive.
pub fn write_archive(tree: &Path, to: &Path) {
    let stream = LayerStream::full(open_dir(tree).as_fd(), WriteOptions::default());
    let mut file = File::create(to).expect("create");
    io::copy(&mut stream.expect("open"), &mut file).expect("write");
}

/// Makes a directory, or makes it empty.
pub fn empty_dir(path: &Path) {
    if path.exists() {
        fs::remove_dir_all(path).expect("what the last run made");
    }
    fs::create_dir(path).expect("mkdir");
}

/// A built-in driver with its home below `root`.
pub fn driver(name: &str, root: &Path) -> Arc<dyn Driver> {
    graphtest::drivers::registry()
        .get_driver(name, root, &InitOptions::default())
        .expect("the driver can run here")
}

/// Makes a layer without parent and fills it; gives its path.
pub fn filled_layer(driver: &dyn Driver, id: &str, fill: impl FnOnce(&Path)) -> PathBuf {
    let opts = CreateOpts::default();
    driver.create(id, None, &opts).expect("create");
    let path = driver.get(id, "").expect("get");
    fill(&path);
    driver.put(id).expect("put");
    path
}
