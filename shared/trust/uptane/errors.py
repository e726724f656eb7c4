"""Every way in which metadata is refused, each by its own name.

`code` is for programs, `attack` says what the failed check guards against in the words of the Uptane
Standard (5.4.4.2: "SHOULD return an error code that indicates the type of attack"), `where` names
the repository and role. The table of checks in shared/trust/README.md lists them all.
"""

from __future__ import annotations

from shared.since_310 import StrEnum
from shared.trust.document import TrustError


class Attack(StrEnum):
    """What a failed check may be a sign of."""

    ARBITRARY_SOFTWARE = "arbitrary_software"
    ROLLBACK = "rollback"
    FREEZE = "freeze"
    MIX_AND_MATCH = "mix_and_match"
    MIXED_BUNDLE = "mixed_bundle"
    PARTIAL_BUNDLE = "partial_bundle"
    ENDLESS_DATA = "endless_data"
    SLOW_RETRIEVAL = "slow_retrieval"
    DROP_REQUEST = "drop_request"
    WRONG_ECU = "wrong_ecu"


class MetadataRefused(TrustError):
    """Metadata, or what it selects, is not accepted; nothing of it is used."""

    code = "metadata_refused"
    attack: Attack = Attack.ARBITRARY_SOFTWARE

    def __init__(self, where: str, text: str) -> None:
        super().__init__(f"{where}: {text}")
        self.where = where


class Missing(MetadataRefused):
    """A file that must be there was not served."""

    code = "metadata_missing"
    attack = Attack.DROP_REQUEST
    retryable = True
    advice = "Try again later; if it stays away, look at the link and at the repository's storage."


class TooLarge(MetadataRefused):
    """More bytes than this file may have; none was parsed."""

    code = "metadata_too_large"
    attack = Attack.ENDLESS_DATA
    advice = "Look who serves this file: the release tool never publishes one of this size."


class Unreadable(MetadataRefused):
    """The bytes are not metadata of this role, or say something that can't be."""

    code = "metadata_unreadable"
    advice = "Publish the repository again with `quarry release`; look who changed the file."


class BelowThreshold(MetadataRefused):
    """Fewer valid signatures by different trusted keys than the role needs."""

    code = "metadata_unsigned"
    advice = "Sign it with enough keys of this role; if you did, somebody else published this file."


class RootVersion(MetadataRefused):
    """A root does not follow the trusted one by exactly one version."""

    code = "root_version"
    attack = Attack.ROLLBACK
    advice = "Serve every version of root.json, unchanged, from the first one on."


class TooManyRoots(MetadataRefused):
    """More new roots at once than are followed."""

    code = "root_chain_too_long"
    attack = Attack.ENDLESS_DATA
    retryable = True
    advice = "The next try goes on from here."


class RolledBack(MetadataRefused):
    """A version is lower than one that was trusted before."""

    code = "metadata_rolled_back"
    attack = Attack.ROLLBACK
    advice = "Publish above the highest version that this truck reports; never restore an old one."


class RoleRemoved(MetadataRefused):
    """A role that the trusted snapshot listed is not listed any more."""

    code = "metadata_role_removed"
    attack = Attack.ROLLBACK
    advice = "Keep a withdrawn role, with no targets, in the snapshot."


class NotAsListed(MetadataRefused):
    """Length, hash or version is not the one that the listing role signed."""

    code = "metadata_not_as_listed"
    attack = Attack.MIX_AND_MATCH
    retryable = True
    advice = "Try again; if it stays, publish the repository again as a whole."


class Expired(MetadataRefused):
    """Metadata's time is over: it is renewed first, and nothing begins until then."""

    code = "metadata_expired"
    attack = Attack.FREEZE
    retryable = True
    advice = "Renew first: connect the truck or bring a fresh bundle. Check the truck's clock."


class TimeNotProved(MetadataRefused):
    """The clock reads below what was signed already, and the policy asks for a time token then."""

    code = "time_not_proved"
    attack = Attack.FREEZE
    retryable = True
    advice = "Fetch a time token, or set the truck's clock by a trusted source."


class BadTimeToken(MetadataRefused):
    """A time token is not the answer to this truck's question."""

    code = "time_token_refused"
    attack = Attack.FREEZE
    retryable = True
    advice = "Ask again with a fresh nonce; look at the time role's keys in the director's root."


class DirectorDelegates(MetadataRefused):
    """The director's targets delegate, which a director may not."""

    code = "director_delegates"
    advice = "Rotate the director's online keys: no honest director publishes this."


class WrongVehicle(MetadataRefused):
    """The director's targets are for another vehicle."""

    code = "wrong_vehicle"
    attack = Attack.WRONG_ECU
    advice = "Look why this truck gets another one's metadata."


class EcuTwice(MetadataRefused):
    """One ECU is named by more than one image."""

    code = "ecu_named_twice"
    attack = Attack.MIXED_BUNDLE
    advice = "Correct the director's assignment."


class UnknownEcu(MetadataRefused):
    """An ECU is named that this truck has not."""

    code = "unknown_ecu"
    attack = Attack.WRONG_ECU
    advice = "Correct the truck's ECUs in the office's inventory."


class WrongHardware(MetadataRefused):
    """An image is not made for the ECU's kind and hardware."""

    code = "wrong_hardware"
    attack = Attack.WRONG_ECU
    advice = "Direct a release that is built for this hardware."


class NotInImageRepository(MetadataRefused):
    """No role of the image repository that may do so has signed this target."""

    code = "target_not_found"
    advice = "Sign and publish the image first; if the director was captured, rotate its keys."


class SearchTooLong(MetadataRefused):
    """The delegations are deeper or more than are searched."""

    code = "delegation_search_too_long"
    attack = Attack.ENDLESS_DATA
    advice = "Delegate flatter: one role for each ECU family."


class TargetsDiffer(MetadataRefused):
    """Director and image repository say different things about one image."""

    code = "targets_differ"
    advice = "Direct exactly what was signed offline; if the director was captured, rotate its keys."


class CounterRolledBack(MetadataRefused):
    """A release counter is lower than the one that this ECU ran already."""

    code = "release_counter_rolled_back"
    attack = Attack.ROLLBACK
    advice = "Sign the firmware again with a higher release counter if it must come back."


class NoRelease(MetadataRefused):
    """Images are directed, but not exactly one release that they belong to."""

    code = "release_missing"
    attack = Attack.MIXED_BUNDLE
    advice = "Direct images by a release that was signed offline."


class BadReleaseDocument(MetadataRefused):
    """The release document can't be read, or is not the one that was signed."""

    code = "release_unreadable"
    advice = "Publish the signed release document again."


class MixedBundle(MetadataRefused):
    """An image is directed that is not this release's image for that ECU."""

    code = "mixed_bundle"
    attack = Attack.MIXED_BUNDLE
    advice = "Direct the release as it was signed."


class PartialBundle(MetadataRefused):
    """An ECU that the release is for gets no image."""

    code = "partial_bundle"
    attack = Attack.PARTIAL_BUNDLE
    advice = "Direct all of the release; if the truck lost an ECU, correct its inventory."


class NotCompatible(MetadataRefused):
    """The truck does not have what the release asks for."""

    code = "release_not_compatible"
    attack = Attack.WRONG_ECU
    advice = "Bring the named ECU to the version that is needed first."


class StoreUnreadable(TrustError):
    """The truck's own trusted store can't be read: nothing is installed until it is provisioned again."""

    code = "trusted_store_unreadable"
    advice = "Provision the truck's trust again from the two root files."
