//! Archive benchmarks: changes, writing, applying.

#[path = "support.rs"]
mod support;

use std::os::fd::AsFd;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use graphtest::archive::{
    ApplyOptions, ChangesOptions, Form, LayerStream, WriteOptions, apply, changes, changes_with,
    layer_changes,
};

const FILES: usize = 10_000;

fn finding_changes(c: &mut Criterion) {
    let work = support::work_dir();
    let (old, new) = (work.path().join("old"), work.path().join("new"));
    support::make_tree(&old, FILES, 100);
    let settled = Some(support::copy_tree(&old, &new));
    let (old_fd, new_fd) = (support::open_dir(&old), support::open_dir(&new));
    let mut group = c.benchmark_group("changes");
    group.sample_size(20);
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("equal-copies", |b| {
        let options = ChangesOptions {
            settled,
            touched: None,
        };
        b.iter(|| changes_with(new_fd.as_fd(), Some(old_fd.as_fd()), &options).expect("compare"));
    });
    group.bench_function("equal-copies-by-content", |b| {
        b.iter(|| changes(new_fd.as_fd(), Some(old_fd.as_fd())).expect("compare"));
    });
    group.bench_function("without-parent", |b| {
        b.iter(|| changes(new_fd.as_fd(), None).expect("walk"));
    });
    group.bench_function("bare-statx", |b| {
        b.iter(|| support::bare_statx(&[&new, &old]));
    });
    // A small layer's cost must not depend on its parent's size.
    let upper = work.path().join("upper");
    support::make_tree(&upper, 100, 100);
    let upper_fd = support::open_dir(&upper);
    group.throughput(Throughput::Elements(100));
    group.bench_function("upper-of-100-files", |b| {
        b.iter(|| layer_changes(upper_fd.as_fd(), &[old_fd.as_fd()], Form::Overlay).expect("walk"));
    });
    group.finish();
}

fn writing(c: &mut Criterion) {
    let work = support::work_dir();
    let (small, large) = (work.path().join("small"), work.path().join("large"));
    support::make_tree(&small, FILES, 1000);
    std::fs::create_dir(&large).expect("mkdir");
    support::make_large_file(&large.join("large"), 256 << 20);
    let mut group = c.benchmark_group("write");
    group.sample_size(20);
    for (name, tree) in [("small-files", &small), ("large-file", &large)] {
        let root = support::open_dir(tree);
        let open = || LayerStream::full(root.as_fd(), WriteOptions::default()).expect("open");
        group.throughput(Throughput::Bytes(support::drain(open())));
        group.bench_function(name, |b| b.iter(|| support::drain(open())));
    }
    group.finish();
}

fn applying(c: &mut Criterion) {
    let work = support::work_dir();
    let mut group = c.benchmark_group("apply");
    group.sample_size(10);
    let (tree, archive, out) = ["tree", "layer.tar", "out"]
        .map(|name| work.path().join(name))
        .into();
    support::make_tree(&tree, FILES, 1000);
    support::write_archive(&tree, &archive);
    let bytes = std::fs::read(&archive).expect("read");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("small-files", |b| {
        b.iter_batched(
            || {
                support::empty_dir(&out);
                support::open_dir(&out)
            },
            |root| apply(root.as_fd(), &mut &bytes[..], &ApplyOptions::default()).expect("apply"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, finding_changes, writing, applying);
criterion_main!(benches);
