//! Driver benchmarks. Run as root; a driver that cannot run here is left out with its reason.

#[path = "socket.rs"]
mod socket;
#[path = "support.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use graphtest::graphdriver::{CreateOpts, Driver, InitOptions};

const FILES: usize = 1000;
const CHAIN: usize = 100;
/// How large the file is whose diff goes through a socket.
const DIFFED: u64 = 64 << 20;

fn every_driver(c: &mut Criterion) {
    graphtest::sys::ns::enter_private_mount_ns().expect("run as root: sudo -E cargo bench");
    for name in graphtest::drivers::registry().names() {
        let work = support::work_dir();
        let root = work.path();
        match graphtest::drivers::registry().get_driver(name, root, &InitOptions::default()) {
            Ok(driver) => {
                one_driver(c, name, &driver);
                driver.cleanup().expect("cleanup");
            }
            Err(why) => println!("{name} cannot run here: {why}"),
        }
    }
}

fn one_driver(c: &mut Criterion, name: &str, driver: &Arc<dyn Driver>) {
    let opts = CreateOpts::default();
    support::filled_layer(driver.as_ref(), "base", |root: &Path| {
        support::make_tree(root, FILES, 1000);
    });
    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    let remove = || driver.remove("child").expect("remove");
    let create = || {
        driver.create("child", Some("base"), &opts).expect("create");
    };
    group.bench_function("create", |b| {
        b.iter_batched(remove, |()| create(), BatchSize::PerIteration);
    });
    group.bench_function("create-and-remove", |b| {
        remove();
        b.iter(|| {
            create();
            remove();
        });
    });
    create();
    group.bench_function("get-and-put", |b| {
        b.iter(|| {
            driver.get("child", "").expect("get");
            driver.put("child").expect("put");
        });
    });
    let path = driver.get("child", "").expect("get");
    support::make_tree(&path.join("new"), 100, 1000);
    driver.put("child").expect("put");
    group.bench_function("changes-of-100-files", |b| {
        b.iter(|| driver.changes("child", Some("base")).expect("changes"));
    });
    group.bench_function("diff-of-100-files", |b| {
        b.iter(|| support::drain(driver.diff("child", Some("base")).expect("diff")));
    });
    chain(&mut group, driver);
    group.finish();
}

/// The top of a long chain must not cost much more than that of a short one.
fn chain(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    driver: &Arc<dyn Driver>,
) {
    let mut parent: Option<String> = None;
    for n in 0..CHAIN {
        let id = format!("chain-{n}");
        let made = driver.create(&id, parent.as_deref(), &CreateOpts::default());
        if let Err(why) = made {
            println!("no chain of {CHAIN}: {why}");
            return;
        }
        let path = driver.get(&id, "").expect("get");
        std::fs::write(path.join(&id), &id).expect("write");
        driver.put(&id).expect("put");
        parent = Some(id);
    }
    let top = parent.expect("a chain");
    group.bench_function("get-and-put-of-a-chain-of-100", |b| {
        b.iter(|| {
            driver.get(&top, "").expect("get");
            driver.put(&top).expect("put");
        });
    });
}

/// What a call costs more through the socket of a plugin.
fn through_a_socket(c: &mut Criterion) {
    let work = support::work_dir();
    let here = support::driver(socket::DRIVER, work.path());
    support::filled_layer(here.as_ref(), "base", |root: &Path| {
        support::make_large_file(&root.join("large"), DIFFED);
    });
    let _served = socket::Served::start(work.path());
    let there = socket::through_socket(work.path());
    for (name, driver) in [("in-process", here), ("plugin", there)] {
        let mut group = c.benchmark_group(name);
        group.bench_function("exists", |b| b.iter(|| driver.exists("base")));
        group.bench_function("get-and-put", |b| {
            b.iter(|| {
                driver.get("base", "").expect("get");
                driver.put("base").expect("put");
            });
        });
        group.sample_size(10);
        group.throughput(Throughput::Bytes(DIFFED));
        group.bench_function("diff-of-a-file", |b| {
            b.iter(|| socket::diff(driver.as_ref()))
        });
        group.finish();
    }
}

criterion_group!(benches, every_driver, through_a_socket);
criterion_main!(benches);
