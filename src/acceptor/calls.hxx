// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the heads of the UNO Remote Protocol's blocks tell: which calls of a client are under way. The rules, and where
// they come from, are in ooodd.uno.urp. Here the bytes are those that the office reads and writes itself.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace ooodd
{

// Finds the heads of the blocks in the bytes of one direction, and skips the rest unread. For one thread at a time.
class Heads
{
public:
    // What begins with the two bytes is a message that is counted.
    using Counted = bool (*)(std::uint8_t flags, std::uint8_t second);

    explicit Heads(Counted counted) : counted(counted) {}

    // Returns how many counted messages begin in these bytes, which may be pieces of any size.
    std::uint64_t count(const std::uint8_t* data, std::size_t size);

    // Whether the direction can't be followed any more: a block has several messages, or none, or is no block.
    bool isLost() const { return lost; }

    // Whether more bytes of a block have to come.
    bool isAmidBlock() const { return rest > 0 || kept > 0; }

private:
    static constexpr std::size_t headerSize = 8;
    // A header, and the two bytes behind it.
    static constexpr std::size_t headSize = headerSize + 2;

    // How many bytes `head` has to have next.
    std::size_t wanted() const;

    // Takes note of more bytes in `head`. Returns whether a counted message begins there.
    bool take();

    Counted counted;
    // How many bytes of the block are still to be skipped.
    std::uint64_t rest = 0;
    std::size_t kept = 0;
    bool lost = false;
    std::array<std::uint8_t, headSize> head{};
};

// Counts the calls of one side of a session, the client, say. Each direction has its thread; any thread may ask.
class Calls
{
public:
    // Takes note of bytes from the client, before the office acts on them.
    void received(const std::uint8_t* data, std::size_t size);

    // Takes note of bytes to the client. For one thread at a time.
    void sent(const std::uint8_t* data, std::size_t size);

    // How many calls have begun so far.
    std::uint64_t total() const { return begun; }

    // How many have no reply yet. At least one if the bytes could not be followed: then nothing is certain.
    std::uint64_t underWay() const;

    // Whether the client has sent the beginning of a block and not its end. For the thread that reads.
    bool isAmidBlock() const { return requests.isAmidBlock(); }

private:
    static bool isCall(std::uint8_t flags, std::uint8_t second);
    static bool isReply(std::uint8_t flags, std::uint8_t second);

    Heads requests{isCall};
    Heads replies{isReply};
    std::atomic<std::uint64_t> begun{0};
    std::atomic<std::uint64_t> answered{0};
    std::atomic<bool> lost{false};
};

}
