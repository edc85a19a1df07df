//! The list of mutants.

use super::recipe::Recipe;
use super::select::SelectBug;
use super::{
    Make, Mutant, WireBug, calls, child, datasets, disk, edges, homes, mounts, overlays, persist,
    pools, put, quota, report, stream, subvolumes, transfer,
};

macro_rules! mutants {
    ($($name:literal $about:literal $make:expr;)*) => {
        /// Every mutant, grouped as the suites are.
        pub const ALL: &[Mutant] = &[$(Mutant { name: $name, about: $about, make: $make },)*];
    };
}

const fn child(
    r: Recipe,
    f: fn(&std::path::Path, &super::recipe::Layer<'_>) -> std::io::Result<()>,
) -> Recipe {
    Recipe {
        child: Some(f),
        ..r
    }
}

use Make::{
    Before, Bug, CaseIgnored, IgnoresLaterOptions, IgnoresOptions, Recipe as R, Select, Wire,
};

mutants! {
    // lifecycle
    "root-mode-umask" "The umask of the process shapes the mode of a new layer's root." Bug(calls::RootModeUmask::make);
    "root-mode-0700" "A new layer's root has mode 0700." Bug(calls::RootMode0700::make);
    "root-not-inherited" "A child's root is 0755 and root's, whatever the parent's is." R(Recipe::child(child::root_not_inherited));
    "special-bits-lost" "A child loses setuid, setgid and sticky bits: the mode is set before the owner."
        R(child(Recipe::diff(stream::special_bits_lost), child::special_bits_lost));
    "dup-create-wipes" "Creating an id that exists makes it anew, empty." Bug(calls::DupCreateWipes::make);
    "dup-create-accepted" "Creating an id that exists succeeds without a word." Bug(calls::DupCreateAccepted::make);
    "bad-parent-cleanup-wipes" "Cleaning up after a failed create removes the layer that had the id before." Bug(calls::BadParentCleanupWipes::make);
    "create-leaves-pieces" "A create that fails leaves a layer of that id." Bug(calls::CreateLeavesPieces::make);
    "missing-parent-ignored" "A create on a parent that does not exist makes a layer without parent." Bug(calls::MissingParentIgnored::make);
    "storage-opt-ignored" "Storage options that the driver does not know are passed over." Bug(calls::StorageOptIgnored::make);
    "driver-option-ignored" "Driver options that are not known are passed over." IgnoresOptions;
    "exists-always" "Every id exists." Bug(calls::ExistsAlways::make);
    "exists-creates" "Asking whether a layer exists makes it." Bug(calls::ExistsCreates::make);
    "remove-keeps-storage" "A removed layer leaves a directory with another name." Bug(calls::RemoveKeepsStorage::make);
    "remove-empty-id-wipes" "Removing the empty id empties the driver's home." Bug(calls::RemoveEmptyIdWipes::make);
    "remove-missing-fails" "Removing a layer that does not exist fails." Bug(calls::RemoveMissingFails::make);
    "remove-forgets-mounted" "Removing a mounted layer only forgets it." Bug(mounts::RemoveForgetsMounted::make);
    "remove-takes-siblings" "Removing a layer removes the other children of its parent." Bug(calls::RemoveTakesSiblings::make);
    "remove-takes-children" "Removing a layer removes its children." Bug(calls::RemoveTakesChildren::make);
    "id-burned" "An id that was removed cannot be used again." Bug(persist::IdBurned::make);
    "recreated-has-old-content" "A layer made under an id that was removed is not empty." Bug(persist::RecreatedHasOldContent::make);
    "status-key-twice" "A key stands twice in the status." Bug(calls::StatusKeyTwice::make);
    "status-unstable" "The status has other keys each time." Bug(calls::StatusUnstable::make);
    "metadata-paths-wrong" "Paths in the metadata do not exist." Bug(calls::MetadataPathsWrong::make);
    "metadata-lower-for-base" "A layer without parent has a LowerDir in its metadata." Bug(calls::MetadataLowerForBase::make);
    "metadata-of-missing" "Metadata of a layer that does not exist is empty, not an error." Bug(calls::MetadataOfMissing::make);
    "cleanup-leaves-mounts" "Cleanup leaves the driver's mounts." Bug(mounts::CleanupLeavesMounts::make);
    "cleanup-deletes" "Cleanup deletes the layers." Bug(mounts::CleanupDeletes::make);
    "cleanup-once" "A second cleanup fails." Bug(mounts::CleanupOnce::make);

    // chains
    "depth-truncates" "Beyond 100 layers the lowest one is not mounted." R(Recipe::child(child::depth_truncates));
    "option-string-cut" "Mount options are cut off at one page: the lowest layers are lost." R(Recipe::child(child::option_string_cut));
    "option-page-edge" "Mount options that fill one page to its last byte lose the lowest layer." R(Recipe::child(child::option_page_edge));
    "too-deep-accepted" "A chain that is too long is made on a shorter one without a word." Bug(calls::TooDeepAccepted::make);
    "depth-error-at-get" "A chain that is too long is noticed when it is mounted, not when it is made." Bug(persist::DepthErrorAtGet::make);
    "skips-parent" "A child of a child is made on its grandparent." Bug(calls::SkipsParent::make);
    "empty-layer-breaks-chain" "A layer made on one that changed nothing is empty." Bug(calls::EmptyLayerBreaksChain::make);
    "oldest-layer-wins" "Layers are stacked the wrong way round: the oldest version of a file is shown." R(Recipe::child(child::oldest_layer_wins));
    "siblings-share" "All children of a parent are one layer." Bug(mounts::SiblingsShare::make);
    "fanout-collides" "Of many children of one parent some share a name on disk." Bug(mounts::FanoutCollides::make);
    "parent-writable-leaks" "What is written into a parent shows in the children it has." Bug(mounts::ParentWritableLeaks::make);

    // whiteouts
    "whiteout-lost" "Deletions are left out of the diff." R(Recipe::diff(stream::whiteout_lost));
    "whiteout-prefix-on-path" "The whiteout prefix stands before the whole path." R(Recipe::diff(stream::whiteout_prefix_on_path));
    "children-of-deleted-dir" "The children of a deleted directory are reported as deleted too."
        R(Recipe { changes: Some(report::children_of_deleted_dir), ..Recipe::diff(stream::children_of_deleted_dir) });
    "opaque-lost" "The diff does not say that a directory was made anew." R(Recipe::diff(stream::opaque_lost));
    "opaque-metadata-lost" "A directory made anew has owner and mode of the default in the diff." R(Recipe::diff(stream::opaque_metadata_lost));
    "opaque-on-all-dirs" "Every directory in the diff is marked as made anew." R(Recipe::diff(stream::opaque_on_all_dirs));
    "deleted-comes-back" "A deletion counts for one layer only." R(Recipe::child(child::deleted_comes_back));
    "stale-whiteout-wins" "A deletion hides what a later layer made under the name." R(Recipe::child(child::stale_whiteout_wins));
    "recreated-dir-not-opaque" "A directory made anew shows its old content once mounted again." R(Recipe::put(put::recreated_dir_not_opaque));
    "replaced-type-reverts" "A file replaced by one of another kind is the old one once mounted again." R(Recipe::put(put::replaced_type_reverts));
    "replaced-type-lost" "The diff leaves out what replaces another kind of file." R(Recipe::diff(stream::replaced_types_lost));
    "whiteout-literal" "Whiteouts stay in the layer as files." R(Recipe { applied: Some(stream::whiteout_literal), ..Recipe::NONE });
    "whiteout-of-missing-fails" "A whiteout of a name that does not exist fails the whole archive." R(Recipe::apply(stream::whiteout_of_missing_fails));
    "whiteout-follows-symlink" "A whiteout of a symbolic link deletes its target." R(Recipe::apply(stream::whiteout_follows_symlink));
    "bare-whiteout-ignored" "Entries named `.wh.`, `.wh..` and `.wh...` are passed over." R(Recipe::apply(stream::bare_whiteout_ignored));
    "whiteout-name-exported" "A file whose name begins with `.wh.` is exported as it is." Bug(transfer::WhiteoutNameExported::make);

    // copy-up
    "chmod-resets-mtime" "A change of mode or owner changes the modification time." R(Recipe::put(put::chmod_resets_mtime));
    "append-lost" "What is appended to a file of the parent is lost." R(Recipe::put(put::append_lost));
    "write-lost" "What is written in place into a file of the parent is lost." R(Recipe::put(put::write_lost));
    "rename-leaves-source" "After a rename the source is there again." R(Recipe::put(put::rename_leaves_source));
    "removed-dir-reappears" "A directory removed or renamed is there again, empty." R(Recipe::put(put::removed_dir_reappears));
    "inode-changes" "A file gets another inode once it was changed." R(Recipe::put(put::inode_changes));
    "lowest-attributes-win" "Owner and mode are those of the lowest layer that has the file." R(Recipe::child(child::lowest_attributes_win));
    "hardlink-partner-emptied" "Writing to one of two hard links empties the other name." R(Recipe::put(put::hardlink_partner_emptied));
    "hardlink-removal-takes-all" "Removing one of two hard links removes both." R(Recipe::put(put::hardlink_removal_takes_all));
    "setgid-not-inherited" "What is made in a setgid directory does not get its group." R(Recipe::put(put::setgid_not_inherited));

    // files
    "hardlink-copied" "A child has a copy for each name of a hard link." R(Recipe::child(child::hardlink_copied));
    "hardlink-copied-in-diff" "The diff holds a copy for each name of a hard link." R(Recipe::diff(stream::hardlink_copied));
    "hardlink-new-name-only" "A new name of a file of the parent is exported alone." R(Recipe::diff(stream::hardlink_new_name_only));
    "symlink-followed" "A child has copies of files in the place of symbolic links." R(Recipe::child(child::symlink_followed));
    "symlink-target-cleaned" "Targets of symbolic links lose `.` and `..`." R(Recipe::put(put::symlink_target_cleaned));
    "symlink-owner-lost" "Symbolic links are root's in a child." R(Recipe::child(child::symlink_owner_lost));
    "special-files-lost" "A child has no pipes and devices." R(Recipe::child(child::special_files_lost));
    "special-files-lost-in-diff" "The diff holds no pipes and devices." R(Recipe::diff(stream::special_files_lost));
    "device-minor-cut" "Minor device numbers keep 8 bits."
        R(child(Recipe::diff(stream::device_minor_cut), child::device_minor_cut));
    "sockets-abort" "The diff of a layer with a socket fails." R(Recipe::diff(stream::socket_aborts_diff));
    "socket-as-file" "A socket stands in the diff as an empty file." R(Recipe::diff(stream::socket_as_file));
    "socket-fails-child" "A layer with a socket can have no child." R(Recipe::child(child::socket_fails_child));
    "xattrs-dropped" "A child has no `user.*` attributes." R(Recipe::child(child::xattrs_dropped));
    "xattrs-lost-in-diff" "The diff holds no `user.*` attributes." R(Recipe::diff(stream::xattrs_lost));
    "xattr-cut-at-nul" "Values of extended attributes end at their first NUL."
        R(child(Recipe::diff(stream::xattr_cut_at_nul), child::xattr_cut_at_nul));
    "caps-dropped" "A child has no file capabilities." R(Recipe::child(child::caps_dropped));
    "caps-lost-in-diff" "The diff holds no file capabilities." R(Recipe::diff(stream::caps_lost));
    "acl-dropped" "A child has no POSIX ACLs." R(Recipe::child(child::acl_dropped));
    "acl-lost-in-diff" "The diff holds no POSIX ACLs." R(Recipe::diff(stream::acl_lost));
    "overlay-xattr-exported" "The diff holds attributes that belong to overlayfs." R(Recipe::diff(stream::overlay_xattr_exported));
    "overlay-xattr-stripped" "Attributes of overlayfs in an archive are dropped without a word." Bug(transfer::OverlayXattrStripped::make);
    "sparse-end-lost" "A hole at the end of a file is cut off."
        R(child(Recipe::diff(stream::sparse_end_lost), child::sparse_end_lost));
    "sparse-filled" "Holes of files are zeros on the disk in a child." R(Recipe::child(child::sparse_filled));
    "sparse-edge-lost" "The last byte before a hole is lost." R(Recipe::child(child::sparse_edge_lost));
    "name-not-utf8-replaced" "Names that are not UTF-8 get replacement characters."
        R(child(Recipe::diff(stream::name_not_utf8_replaced), child::name_not_utf8_replaced));
    "name-cut-at-100" "Names are cut to 100 bytes in the diff." R(Recipe::diff(stream::name_cut_at_100));
    "long-names-lost" "A child has no names longer than 250 bytes." R(Recipe::child(child::long_names_lost));
    "case-folded" "Names that differ in case only are one." R(Recipe::child(child::case_folded));
    "modes-umasked" "Modes in a child go through a umask of 022." R(Recipe::child(child::modes_umasked));
    "uid-truncated" "Owners keep 16 bits in a child, 21 in the diff." R(child(Recipe::diff(stream::uid_truncated), child::uid_truncated));
    "mtime-sec-only" "Times in a child have whole seconds." R(Recipe::child(child::mtime_sec_only));
    "mtime-sec-only-in-diff" "Times in the diff have whole seconds." R(Recipe::diff(stream::mtime_sec_only));
    "mtime-negative-zero" "Times before 1970 become 0." R(Recipe::child(child::mtime_negative_zero));
    "dir-mtime-now" "Directories in a child have the time of the copy." R(Recipe::child(child::dir_mtime_now));
    "empty-dirs-lost" "A child has no empty directories." R(Recipe::child(child::empty_dirs_lost));
    "empty-dirs-lost-in-diff" "The diff holds no empty directories." R(Recipe::diff(stream::empty_dirs_lost));

    // diff and apply
    "diff-top-layer-only" "Diff, changes and size are against the direct parent, whatever was asked for." Bug(transfer::TopLayerOnly::make);
    "diff-unstable" "Two diffs of one layer differ." Bug(transfer::DiffUnstable::make);
    "parents-left-out" "Directories that hold a change are left out of the diff." R(Recipe::diff(stream::parents_left_out));
    "parents-root-0700" "Directories that hold a change stand in the diff as root's, mode 0700." R(Recipe::diff(stream::parents_root_0700));
    "root-entry-always" "The diff of an unchanged layer is not empty." R(Recipe::diff(stream::root_entry_always));
    "same-size-missed" "A file rewritten with the same size within a second is not noticed."
        R(Recipe { changes: Some(report::same_size_missed), ..Recipe::diff(stream::same_size_missed) });
    "diff-unmounts" "A diff unmounts a layer that its caller holds." Bug(transfer::DiffUnmounts::make);
    "diff-leaks-mount" "A diff leaves its layer mounted." Bug(transfer::DiffLeaksMount::make);
    "early-close-leaks" "A diff that is not read to its end leaves its layer mounted." Bug(transfer::EarlyCloseLeaks::make);
    "diff-of-held-empty" "The diff of a layer that is held is empty." Bug(transfer::DiffOfHeldEmpty::make);
    "last-byte-lost" "Files in the diff lack their last byte." R(Recipe::diff(stream::last_byte_lost));
    "last-byte-lost-in-apply" "Applied files lack their last byte." R(Recipe::apply(stream::last_byte_lost));
    "junk-accepted" "What is no archive counts as an empty one." Bug(transfer::JunkAccepted::make);
    "truncated-accepted" "An archive cut short counts as whole." Bug(transfer::TruncatedAccepted::make);
    "gzip-accepted" "A compressed archive is taken." Bug(transfer::GzipAccepted::make);
    "empty-accepted" "A stream of no bytes counts as an archive." Bug(transfer::EmptyAccepted::make);
    "redirects-not-followed" "A directory that was renamed by a redirect is empty in the diff." R(Recipe::diff(overlays::redirects_not_followed));
    "native-diff-misread" "The status says the opposite of how diffs are made." Bug(overlays::NativeDiffMisread::make);
    "trailing-unread" "What follows the end of an archive is not read." Bug(transfer::TrailingUnread::make);
    "first-entry-wins" "Of two entries of one name the first one stands." R(Recipe::apply(stream::first_entry_wins));
    "dir-replaces-dir" "A directory in an archive empties the one that is there." R(Recipe::apply(stream::dir_replaces_dir));
    "apply-wipes" "An archive replaces all that the layer holds." R(Recipe::apply(stream::apply_wipes));
    "missing-parents-0700" "Directories that an archive does not name have mode 0700."
        R(Recipe { applied: Some(stream::missing_parents_0700), ..Recipe::NONE });
    "dir-mtime-lost" "Directories of an archive have the time of applying."
        R(Recipe { applied: Some(stream::dir_mtime_lost), ..Recipe::NONE });
    "global-header-fails" "A global PAX header is an error." R(Recipe::apply(stream::global_header_fails));
    "global-header-as-file" "A global PAX header becomes a file." R(Recipe::apply(stream::global_header_as_file));
    "xattrs-lost-in-apply" "Extended attributes of an archive are not set." R(Recipe::apply(stream::xattrs_lost));
    "dotdot-accepted" "A name that leaves the layer is taken by its last component." R(Recipe::apply(stream::dotdot_accepted));
    "owner-wraps" "Owners in an archive keep 32 bits." R(Recipe::apply(stream::owner_wraps));
    "unknown-types-ignored" "Entries of a kind that is not known are passed over." R(Recipe::apply(stream::unknown_types_ignored));
    "apply-staging-left" "What was staged of an archive stays in the home after a crash." Bug(transfer::ApplyStagingLeft::make);
    "apply-marks-parent" "While an archive is applied the layer below holds a mark." Bug(transfer::ApplyMarksParent::make);
    "apply-error-swallowed" "An archive that cannot be applied is no error." Bug(transfer::ApplyErrorSwallowed::make);

    // changes
    "changes-no-parents" "Directories that hold a change are not listed." R(Recipe { changes: Some(report::no_parents), ..Recipe::NONE });
    "changes-no-deletes" "Deletions are not listed." R(Recipe { changes: Some(report::no_deletes), ..Recipe::NONE });
    "changes-children-of-replaced-dir" "A directory replaced by a file lists its children as deleted."
        R(Recipe { changes: Some(report::children_of_replaced_dir), ..Recipe::NONE });
    "changes-root-listed" "The root is listed." R(Recipe { changes: Some(report::root_listed), ..Recipe::NONE });
    "changes-first-twice" "A path is listed twice." R(Recipe { changes: Some(report::first_twice), ..Recipe::NONE });
    "changes-unsorted" "Changes are not sorted." R(Recipe { changes: Some(report::unsorted), ..Recipe::NONE });
    "changes-metadata-missed" "A change of mode or owner is not listed." R(Recipe { changes: Some(report::metadata_missed), ..Recipe::NONE });
    "changes-many-by-size" "In a layer of more than 10,000 files, one that is as long as before is not listed." R(Recipe { changes: Some(report::many_by_size), ..Recipe::NONE });
    "changes-touch-missed" "A change of a file's time is not listed." R(Recipe { changes: Some(report::touch_missed), ..Recipe::NONE });
    "changes-dir-touch" "A change of a directory's time is listed." R(Recipe { changes: Some(report::dir_touch_reported), ..Recipe::NONE });
    "changes-xattrs-missed" "A change of an extended attribute is not listed." R(Recipe { changes: Some(report::xattrs_missed), ..Recipe::NONE });
    "changes-symlinks-missed" "A symbolic link that points elsewhere is not listed." R(Recipe { changes: Some(report::symlinks_missed), ..Recipe::NONE });
    "changes-special-files-missed" "Pipes, devices and sockets are not listed." R(Recipe { changes: Some(report::special_files_missed), ..Recipe::NONE });
    "changes-no-parent-modifies" "Without a parent everything is listed as modified." R(Recipe { changes: Some(report::no_parent_modifies), ..Recipe::NONE });
    "changes-cached" "Changes are remembered from the first call on." Bug(transfer::ChangesCached::make);

    // sizes
    "hardlink-size-doubled" "Every name of a hard link counts." R(Recipe { size: Some(report::hardlinks_doubled), ..Recipe::NONE });
    "size-whole-blocks" "Sizes are rounded up to whole blocks." R(Recipe { size: Some(report::whole_blocks), ..Recipe::NONE });
    "size-allocated" "Allocated blocks are counted, not bytes." R(Recipe { size: Some(report::allocated_blocks), ..Recipe::NONE });
    "size-counts-parent" "What the parent holds is counted." R(Recipe { size: Some(report::parent_counted), ..Recipe::NONE });
    "size-counts-dirs" "Directories are counted." R(Recipe { size: Some(report::dirs_counted), ..Recipe::NONE });
    "size-counts-deletes" "Deleted files are counted." R(Recipe { size: Some(report::deletes_counted), ..Recipe::NONE });
    "size-counts-growth" "Of a changed file only its growth is counted." R(Recipe { size: Some(report::growth_counted), ..Recipe::NONE });
    "apply-size-of-archive" "Apply answers with the size of the archive." Bug(transfer::ApplySizeOfArchive::make);
    "apply-size-zero" "Apply answers with 0." Bug(transfer::ApplySizeZero::make);

    // mounts
    "refcount-unmounts-early" "The first put unmounts for everyone." Bug(mounts::RefcountUnmountsEarly::make);
    "put-below-zero-swallows-get" "A put without a get makes the next get mount nothing." Bug(mounts::PutBelowZero::make);
    "put-leaks" "Nothing is ever unmounted." Bug(mounts::PutLeaks::make);
    "put-missing-fails" "A put of a layer that does not exist fails." Bug(mounts::PutMissingFails::make);
    "get-path-varies" "Each get of a layer answers with another path." Bug(mounts::GetPathVaries::make);
    "get-creates" "A get of a layer that does not exist makes it." Bug(mounts::GetCreates::make);
    "get-leaves-dir" "A get that fails leaves a directory." Bug(mounts::GetLeavesDir::make);
    "refcount-unlocked" "Counts are kept without a lock." Bug(mounts::RefcountUnlocked::make);
    "create-unlocked" "Two threads may both create one id." Bug(mounts::CreateUnlocked::make);
    "diffs-collide" "A second diff fails while one is being read." Bug(mounts::DiffsCollide::make);

    // limits
    "id-basename" "An id with slashes is taken by its last component." Bug(calls::IdBasename::make);
    "id-cut" "Ids are cut to 60 bytes." Bug(calls::IdCut::make);
    "id-lowercased" "Ids are made lower case." Bug(calls::IdLowercased::make);
    "colon-unescaped" "A colon, comma or backslash in the home's path breaks the mount options." R(Recipe::child(child::colon_unescaped));

    // edges
    "long-paths-lost" "A child has nothing whose path is longer than 1000 bytes." R(Recipe::child(edges::long_paths_lost));
    "clone-becomes-link" "Files that hold the same become names of one file." R(Recipe::put(edges::clone_becomes_link));
    "copies-unshared" "What is copied from the parent is written out byte by byte." R(Recipe::put(edges::copies_unshared));
    "size-shared-once" "Of files that share blocks one counts." R(Recipe { size: Some(edges::shared_once), ..Recipe::NONE });
    "overlay-attributes-act" "What attributes of overlays say that were set inside a layer is done." R(Recipe::put(edges::overlay_attributes_act));
    "put-leaves-file" "Giving a layer back leaves an empty file in it." R(Recipe::put(edges::put_leaves_file));
    "mounts-sought-unresolved" "Mounts below a home that is a symbolic link are not found." Bug(edges::SoughtUnresolved::make);
    "mount-table-not-unescaped" "After a restart, mounts whose path the mount table escapes are not found." Bug(edges::NotUnescaped::make);

    "home-case-ignored" "A home that ignores case is taken, and so ids that differ in case only are one." CaseIgnored;
    "cleanup-unmounts-home" "Cleanup also takes away what is mounted on the home." Bug(homes::CleanupUnmountsHome::make);
    "foreign-mounts-taken-away" "Cleanup takes away every mount of the home's filesystem beside the home." Bug(homes::ForeignMountsTakenAway::make);
    "only-whole-filesystems" "No layer is made where a part of a filesystem is mounted and not all of it." Bug(homes::OnlyWholeFilesystems::make);
    "read-only-elsewhere" "No layer is made while the filesystem is mounted read-only elsewhere." Bug(homes::ReadOnlyElsewhere::make);

    // recovery
    "restart-forgets" "Layers made before a restart do not exist after it." Bug(persist::RestartForgets::make);
    "restart-forgets-parents" "Parents of layers are forgotten by a restart." Bug(persist::RestartForgetsParents::make);
    "restart-empties-files" "A restart empties files." Bug(persist::RestartEmptiesFiles::make);
    "restart-loses-mount" "After a restart a get mounts nothing." Bug(persist::RestartLosesMount::make);
    "create-not-atomic" "A new layer is there before it shows its parent." Bug(persist::CreateNotAtomic::make);
    "remove-not-atomic" "A layer is emptied before it is removed." Bug(persist::RemoveNotAtomic::make);
    "start-not-atomic" "While it starts, the driver's directories have other names." Bug(persist::StartNotAtomic::make);
    "empty-link-wipes-links" "Removing a layer whose `link` file is empty removes all links." Bug(persist::EmptyLinkWipesLinks::make);
    "chain-without-repeats" "A layer that stands twice in a chain counts once, and nothing is said." Bug(persist::ChainWithoutRepeats::make);
    "start-refused-while-mounted" "A driver does not start on a home in which layers are mounted." Before(homes::no_mounts);
    "damage-shown-empty" "A damaged layer is shown as an empty one." Bug(persist::DamageShownEmpty::make);

    // space, read-only, power
    "failed-create-leaks" "A create for which there is no room leaves a directory of another name." Bug(disk::FailedCreateLeaks::make);
    "list-write-unchecked" "The list of layers is written without a look at errors, and is empty when there is no room." Bug(disk::ListWriteUnchecked::make);
    "full-for-ever" "Once there was no room to make a layer, none can be made until a restart." Bug(disk::FullForEver::make);
    "put-truncates-when-full" "On a disk without room the files of a layer that is put are cut short." R(Recipe::put(disk::put_truncates_when_full));
    "apply-ignores-full" "An archive for which there is no room is taken for applied." Bug(disk::ApplyIgnoresFull::make);
    "full-told-as-archive" "That there is no room is told as a fault of the archive." Bug(disk::FullToldAsArchive::make);
    "remove-needs-room" "Removing a layer first writes a note to the disk." Bug(disk::RemoveNeedsRoom::make);
    "diff-spooled-in-home" "A diff is written to the home before it is handed out." Bug(disk::DiffSpooledInHome::make);
    "read-only-is-success" "Calls that fail because the disk is read-only are told as done." Bug(disk::ReadOnlyIsSuccess::make);
    "read-only-looks-empty" "On a read-only disk no layer exists." Bug(disk::ReadOnlyLooksEmpty::make);
    "read-only-for-ever" "Once the disk was read-only, no layer can be made until a restart." Bug(disk::ReadOnlyForEver::make);
    "records-not-synced" "The files of a new layer are not synced." Bug(disk::RecordsNotSynced::make);
    "create-deferred" "A child is not made before it is first got." Bug(disk::CreateDeferred::make);

    // views
    "view-writable" "A layer that has children is handed out as a writable copy." Bug(mounts::ViewWritable::make);

    // quotas
    "quota-ignored" "The size of a layer is passed over." Bug(quota::ignored);
    "quota-halved" "A layer takes half of its size." Bug(quota::halved);
    "quota-inherited" "A child of a layer with a size has it too." Bug(quota::inherited);
    "quota-shared" "Layers with a size share one limit." Bug(quota::shared);
    "quota-counts-parent" "What lies below a layer counts towards its size." Bug(quota::with_parent);
    "quota-forgets-parent" "What a layer has of its parent does not count towards its size." Bug(quota::without_parent);
    "quota-bad-size-passed-over" "A size that is none is passed over." Bug(quota::BadSizePassedOver::make);
    "quota-lost-on-restart" "A restart lifts all limits." Bug(quota::LostOnRestart::make);
    "quota-leaked" "The limit of a layer that is gone stays on record." Bug(quota::Leaked::make);
    "quota-foreign-lifted" "Removing a layer lifts the limits of everybody." Bug(quota::ForeignLifted::make);
    "quota-full-not-removed" "A layer that is full cannot be removed." Bug(quota::FullNotRemoved::make);

    // btrfs
    "subvolumes-empty-in-child" "Subvolumes inside a layer are empty directories in its children." R(Recipe::child(subvolumes::empty_in_child));
    "subvolumes-left-out-of-diff" "What lies in subvolumes inside a layer is left out of its diff." R(Recipe::diff(subvolumes::left_out_of_diff));
    "subvolumes-left-behind" "Subvolumes inside a layer stay when it is removed." Bug(subvolumes::LeftBehind::make);
    "subvolumes-block-removal" "A layer with subvolumes inside cannot be removed." Bug(subvolumes::BlockRemoval::make);
    "subvolume-inodes-mixed" "Files of different subvolumes with the same inode number are one in the diff." R(Recipe::diff(subvolumes::inodes_mixed));
    "foreign-subvolumes-removed" "Removing a layer removes subvolumes beside the home." Bug(subvolumes::ForeignRemoved::make);
    "remove-failure-swallowed" "A layer that cannot be removed is said to be." Bug(subvolumes::RemoveFailureSwallowed::make);
    "read-only-subvolumes-stay" "A layer whose subvolume is read-only cannot be removed." Bug(subvolumes::ReadOnlyStays::make);
    "read-only-nested-stay" "Subvolumes inside a layer whose subvolume is read-only keep it from being removed." Bug(subvolumes::ReadOnlyNestedStays::make);
    "read-only-subvolumes-written" "A subvolume that is read-only is made writable when it is got." Bug(subvolumes::ReadOnlyWritten::make);
    "read-only-subvolumes-inherited" "The child of a layer whose subvolume is read-only is so, too." Bug(subvolumes::ReadOnlyInherited::make);
    "plain-directory-handed-out" "What is no subvolume is handed out as a layer." Bug(subvolumes::PlainDirectoryHandedOut::make);

    // zfs
    "datasets-left-behind" "The dataset of a layer stays when it is removed." Bug(datasets::LeftBehind::make);
    "foreign-snapshots-block-removal" "A layer with snapshots of somebody else's cannot be removed." Bug(datasets::SnapshotsBlock::make);
    "datasets-block-removal" "A layer with datasets inside cannot be removed." Bug(datasets::DatasetsBlock::make);
    "clones-removed" "Removing a layer removes the layers that were made from it." Bug(datasets::ClonesRemoved::make);
    "busy-dataset-blocks-removal" "A layer that is mounted elsewhere cannot be removed." Bug(datasets::BusyBlocks::make);
    "datasets-remembered" "A layer whose dataset is gone is said to exist." Bug(datasets::Remembered::make);

    // selection
    "prior-state-ignored" "State of a driver in the storage root does not count." Select(SelectBug::PriorIgnored);
    "prior-falls-back" "When the driver that has state cannot run, another one is taken." Select(SelectBug::PriorFallsBack);
    "prior-conflict-ignored" "Of several drivers with state the first is taken." Select(SelectBug::ConflictIgnored);
    "prior-empty-counts" "An empty directory counts as state." Select(SelectBug::EmptyCounts);
    "prior-vfs-counts" "State of vfs selects vfs." Select(SelectBug::VfsCounts);
    "select-any-error-skips" "Any error of a driver goes on to the next." Select(SelectBug::AnyErrorSkips);
    "select-by-name" "Drivers are tried in the order of their names." Select(SelectBug::ByName);
    "select-env-ignored" "The DOCKER_DRIVER variable does not count." Select(SelectBug::EnvIgnored);
    "select-named-falls-back" "When the named driver cannot run, another one is taken." Select(SelectBug::NamedFallsBack);

    // thin-pools
    "later-options-ignored" "Options count for the first driver on a home alone." IgnoresLaterOptions;
    "pool-not-recognised" "A home takes any pool for its own." Before(pools::forget_identity);
    "removed-space-kept" "A removed layer's space stays taken." Bug(pools::SpaceKept::make);
    "mounted-apart" "A layer cannot be mounted together with its parent." Bug(pools::MountedApart::make);
    "snapshot-of-disk" "A child shows what of its parent had reached the disk." Bug(pools::SnapshotOfDisk::make);

    // plugins
    "plugin-errors-hidden" "A plugin answers every error as a success." Wire(WireBug::ErrorsHidden);
    "plugin-exists-always" "A plugin says of every id that it exists." Wire(WireBug::ExistsAlways);
    "plugin-error-without-text" "An error of a plugin says nothing." Wire(WireBug::ErrorWithoutText);
    "plugin-diff-error-200" "The error of a diff comes under status 200, where daemons expect the archive." Wire(WireBug::DiffErrorIs200);
    "plugin-cut-body-taken" "A plugin takes an archive that is cut off for the whole." Wire(WireBug::CutBodyTaken);
    "plugin-chunked-refused" "A plugin refuses bodies in chunks." Wire(WireBug::ChunkedRefused);
    "plugin-first-piece-only" "A plugin takes the first piece of an archive for all of it." Wire(WireBug::FirstPieceOnly);
    "plugin-host-required" "A plugin refuses a request without a host." Wire(WireBug::HostRequired);
    "plugin-type-required" "A plugin refuses a request without a content type." Wire(WireBug::TypeRequired);
    "plugin-one-at-a-time" "A plugin refuses a call while another one is going on." Wire(WireBug::OneAtATime);
    "plugin-home-must-be-there" "A plugin refuses a home that is not there." Wire(WireBug::HomeMustBeThere);
    "plugin-strict-init" "A plugin asks for members of Init that early daemons do not send." Wire(WireBug::StrictInit);
    "plugin-garbage-taken" "A plugin passes over a body that is no JSON, and says that it did what was asked." Wire(WireBug::GarbageTaken);
    "plugin-unknown-call-taken" "A call that a plugin does not know succeeds." Wire(WireBug::UnknownCallTaken);
    "plugin-capabilities-fail" "A plugin answers the question for capabilities with an error." Wire(WireBug::CapabilitiesFail);
    "plugin-not-json" "A plugin says a success in a word that is no JSON." Wire(WireBug::NotJson);
    "plugin-counts-kept" "A plugin still counts the gets of a daemon that was restarted since." Wire(WireBug::CountsKept);
    "plugin-dies-of-hang-up" "A plugin ends when a sender is gone in the middle of a body." Wire(WireBug::DiesOfHangUp);
}
