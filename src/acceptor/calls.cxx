// SPDX-License-Identifier: LGPL-2.1-or-later

#include "calls.hxx"

#include <algorithm>

namespace ooodd
{

namespace
{

// Flags of a message. If LONG is clear, the message is a request, and the other bits are the function's number.
constexpr std::uint8_t longHeader = 0x80;
constexpr std::uint8_t request = 0x40;
constexpr std::uint8_t function16 = 0x04;
constexpr std::uint8_t moreFlags = 0x01;
// The function that wants no reply: every interface has it.
constexpr std::uint8_t release = 2;

std::uint32_t number(const std::uint8_t* data)
{
    return std::uint32_t{data[0]} << 24 | std::uint32_t{data[1]} << 16 | std::uint32_t{data[2]} << 8 | data[3];
}

}

std::size_t Heads::wanted() const
{
    return kept < headerSize ? headerSize : std::min<std::size_t>(headerSize + number(head.data()), headSize);
}

std::uint64_t Heads::count(const std::uint8_t* data, std::size_t size)
{
    std::uint64_t found = 0;
    while (size > 0 && !lost)
    {
        const auto step = static_cast<std::size_t>(std::min<std::uint64_t>(rest > 0 ? rest : wanted() - kept, size));
        if (rest > 0)
        {
            rest -= step;
        }
        else
        {
            std::copy_n(data, step, head.begin() + static_cast<std::ptrdiff_t>(kept));
            kept += step;
            found += take() ? 1U : 0U;
        }
        data += step;
        size -= step;
    }
    return found;
}

bool Heads::take()
{
    const std::uint64_t length = kept < headerSize ? 0 : number(head.data());
    if (kept == headerSize)
    {
        lost = length == 0 || number(head.data() + 4) != 1;
    }
    if (lost || kept < headerSize + 1 || kept < wanted())
    {
        return false;
    }
    rest = headerSize + length - kept;
    kept = 0;
    return counted(head[headerSize], length > 1 ? head[headerSize + 1] : std::uint8_t{0});
}

bool Calls::isCall(std::uint8_t flags, std::uint8_t second)
{
    if ((flags & longHeader) == 0)
    {
        return flags != release;
    }
    if ((flags & request) == 0)
    {
        return false;
    }
    return (flags & (function16 | moreFlags)) != 0 || second != release;
}

bool Calls::isReply(std::uint8_t flags, std::uint8_t)
{
    return (flags & (longHeader | request)) == longHeader;
}

void Calls::received(const std::uint8_t* data, std::size_t size)
{
    if (const std::uint64_t found = requests.count(data, size); found > 0)
    {
        begun += found;
    }
    if (requests.isLost())
    {
        lost = true;
    }
}

void Calls::sent(const std::uint8_t* data, std::size_t size)
{
    if (const std::uint64_t found = replies.count(data, size); found > 0)
    {
        answered += found;
    }
    if (replies.isLost() || answered > begun)
    {
        lost = true;
    }
}

std::uint64_t Calls::underWay() const
{
    const std::uint64_t done = answered; // first: a call begins before it is answered
    const std::uint64_t all = begun;
    return lost ? std::max<std::uint64_t>(1, all - std::min(done, all)) : all - std::min(done, all);
}

}
